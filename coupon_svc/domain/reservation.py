"""Reservations: coupons held for one order, and the steps from held to confirmed, cancelled, expired or reversed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from coupon_svc.domain.coupon import Coupon, CouponStatus, move
from coupon_svc.domain.hold import Hold, HoldState
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.spending import spend
from coupon_svc.domain.terms import GiftCard, Terms
from coupon_svc.domain.times import format_utc
from meshkit.errors import InvalidFields, MeshError

# Stands for "nothing" where a hash of 32 bytes belongs.
NO_HASH = bytes(32)
# A gift card is held by at most this many reservations at once, so that counting them stays cheap.
MAX_HOLDS = 200


class ReservationState(IntEnum):
    """Where a reservation stands; the numbers of reservation.state."""

    HELD = 1
    CONFIRMED = 2
    CANCELLED = 3
    EXPIRED = 4
    REVERSED = 5


# Every allowed step. EXPIRED is what the release of expired holds leaves; time alone changes nothing that is stored.
RESERVATION_STEPS: frozenset[tuple[ReservationState, ReservationState]] = frozenset(
    {
        (ReservationState.HELD, ReservationState.CONFIRMED),
        (ReservationState.HELD, ReservationState.CANCELLED),
        (ReservationState.HELD, ReservationState.EXPIRED),
        (ReservationState.EXPIRED, ReservationState.CONFIRMED),
        (ReservationState.EXPIRED, ReservationState.CANCELLED),
        (ReservationState.CONFIRMED, ReservationState.REVERSED),
    }
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation as its row holds it; amounts are fen, responses are the replies as they were sent.

    One that was cancelled before it arrived has no order, no lines and NO_HASH.
    """

    shard: int
    caller: str
    reservation_id: str
    state: ReservationState
    user_id: int
    merchant_id: str
    order_id: str
    amount_minor: int
    lines: tuple[Line, ...]
    settlement_held: bool
    reserve_hash: bytes
    expires_at_ms: int
    create_time_ms: int
    update_time_ms: int
    reserve_response: bytes = b""
    confirm_hash: bytes = NO_HASH
    confirm_response: bytes = b""

    def moved(self, state: ReservationState, now_ms: int) -> Reservation:
        """The reservation in another state.

        Raises:
            MeshError: RESERVATION_CANCELLED or RESERVATION_CONFIRMED for a step that there is not.
        """
        if (self.state, state) in RESERVATION_STEPS:
            return replace(self, state=state, update_time_ms=now_ms)
        if self.state is ReservationState.CANCELLED:
            raise MeshError("RESERVATION_CANCELLED", reservation_id=self.reservation_id)
        if self.state is ReservationState.CONFIRMED:
            raise MeshError("RESERVATION_CONFIRMED", reservation_id=self.reservation_id)
        # What was reversed took effect once and never will again.
        raise MeshError("TRANSACTION_REVERSED", request_id=self.reservation_id)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A coupon that an order wants; `amount_minor` is the sum to take from a gift card, None for what is left."""

    coupon_id: str
    amount_minor: int | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a coupon takes of what was left to pay before it (`base_minor`)."""

    coupon_id: str
    base_minor: int
    deduction_minor: int
    held_minor: int


def plan(
    wanted: Sequence[Wanted],
    coupons: Mapping[str, Coupon],
    terms: Mapping[str, Terms],
    *,
    merchant_id: str,
    amount_minor: int,
    now_ms: int,
) -> list[Planned]:
    """What each coupon takes off the order, one after the other, each of what the ones before left to pay.

    Args:
        wanted: The coupons in the order in which they apply.
        coupons: They by id, with live holds counted.
        terms: Their terms by terms_id.
        merchant_id: Where the order is.
        amount_minor: The order amount in fen.
        now_ms: The time.

    Raises:
        MeshError: what `spend` raises for the first coupon that cannot be used; COUPON_HELD also for a gift card that
            too many reservations hold; VALIDATION_FAILED for a sum that does not belong there.
    """
    left = amount_minor
    planned: list[Planned] = []
    for index, want in enumerate(wanted):
        coupon = coupons[want.coupon_id]
        kind = terms[coupon.terms_id].kind
        is_card = isinstance(kind, GiftCard)
        base_minor = _asked(want, left, is_card=is_card, field=f"coupons[{index}].amount")
        if coupon.holds >= MAX_HOLDS:
            until = format_utc(coupon.hold_expires_at_ms or now_ms)
            raise MeshError("COUPON_HELD", coupon_id=coupon.coupon_id, until=until)
        spent = spend(coupon, terms[coupon.terms_id], merchant_id=merchant_id, amount_minor=base_minor, now_ms=now_ms)
        planned.append(Planned(coupon.coupon_id, left, spent.deduction_minor, spent.deduction_minor if is_card else 0))
        left -= spent.deduction_minor
    return planned


def _asked(want: Wanted, left_minor: int, *, is_card: bool, field: str) -> int:
    """The amount to spend a coupon on: what is left to pay, or the part of it that a gift card shall pay."""
    if left_minor == 0:
        raise MeshError("COUPON_NO_EFFECT", coupon_id=want.coupon_id)
    if want.amount_minor is None:
        return left_minor
    if not is_card:
        raise InvalidFields([(field, "only a gift card takes a sum")])
    if want.amount_minor > left_minor:
        raise InvalidFields([(field, f"is more than the {format_yuan(left_minor)} left to pay")])
    return want.amount_minor


def confirmed_amounts(reservation: Reservation, holds: Sequence[Hold], wanted: Sequence[Wanted]) -> dict[str, int]:
    """How much to take by coupon: as reserved, or the smaller part that is wanted; coupons left out are missing.

    Raises:
        MeshError: CONFIRM_EXCEEDS_HOLD, or VALIDATION_FAILED for a coupon named twice or a part of an undivided one.
    """
    if not wanted:
        return {hold.coupon_id: hold.deduction_minor for hold in holds}
    by_coupon = {hold.coupon_id: hold for hold in holds}
    amounts: dict[str, int] = {}
    for index, want in enumerate(wanted):
        field = f"coupons[{index}]"
        if want.coupon_id in amounts:
            raise InvalidFields([(f"{field}.coupon_id", "stands twice")])
        hold = by_coupon.get(want.coupon_id)
        reserved = 0 if hold is None else hold.deduction_minor
        amount = reserved if want.amount_minor is None else want.amount_minor
        if hold is None or amount > reserved:
            raise MeshError(
                "CONFIRM_EXCEEDS_HOLD",
                reservation_id=reservation.reservation_id,
                coupon_id=want.coupon_id,
                held=format_yuan(reserved),
            )
        if amount < reserved and hold.held_minor == 0:
            raise InvalidFields([(f"{field}.amount", "only a gift card is taken in part")])
        amounts[want.coupon_id] = amount
    return amounts


def take_held(coupon: Coupon, hold: Hold, amount_minor: int, *, now_ms: int) -> Coupon:
    """The coupon after its hold was consumed, in full or in part.

    Args:
        coupon: It, with the live holds of others counted and this one left out.
        hold: The hold, live or not.
        amount_minor: What to take.
        now_ms: The time.

    Raises:
        MeshError: COUPON_FROZEN, or HOLD_EXPIRED when the hold did not protect the coupon and it cannot be taken again.
    """
    if coupon.status is CouponStatus.FROZEN:
        raise MeshError("COUPON_FROZEN", coupon_id=coupon.coupon_id)
    # A live hold outlasts the coupon's own period.
    status = coupon.status if hold.is_live(now_ms) else coupon.status_at(now_ms)
    if hold.held_minor:
        # Also for a live hold: a process whose clock runs ahead may have seen it expire and spent the balance.
        takable = status is CouponStatus.ACTIVATED and amount_minor <= coupon.available_minor
    else:
        takable = status is CouponStatus.ACTIVATED and coupon.holds == 0
    if not takable:
        raise MeshError(
            "HOLD_EXPIRED",
            reservation_id=hold.reservation_id,
            coupon_id=coupon.coupon_id,
            expire_time=format_utc(hold.expires_at_ms),
        )
    if not hold.held_minor:
        return move(coupon, CouponStatus.USED)
    left = replace(coupon, balance_minor=coupon.balance_minor - amount_minor)
    return left if left.balance_minor else move(left, CouponStatus.USED)


def given_back(coupon: Coupon, terms: Terms, amount_minor: int) -> Coupon:
    """The coupon after a consumption was reversed: a gift card has its balance back, any other can be used again.

    A frozen or expired card is credited and stays what it is.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED when a single-use coupon is not USED.
    """
    if isinstance(terms.kind, GiftCard):
        coupon = replace(coupon, balance_minor=coupon.balance_minor + amount_minor)
        return move(coupon, CouponStatus.ACTIVATED) if coupon.status is CouponStatus.USED else coupon
    if coupon.status is not CouponStatus.USED:
        # Not move(): REFUNDED → ACTIVATED is a step of gift cards alone.
        steps = {"from": coupon.status.name, "to": CouponStatus.ACTIVATED.name}
        raise MeshError("STATUS_TRANSITION_REFUSED", **steps)
    return move(coupon, CouponStatus.ACTIVATED)


def released(hold: Hold) -> Hold:
    """The hold given up."""
    return replace(hold, state=HoldState.RELEASED)
