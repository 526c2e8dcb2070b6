"""One coupon: its states, the steps between them, and what consuming it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.terms import GiftCard, Terms
from coupon_svc.domain.times import format_utc
from meshkit.errors import MeshError


class CouponStatus(IntEnum):
    """Where a coupon stands; the numbers of coupon_info.status."""

    UNACTIVATED = 1
    USED = 2
    ACTIVATED = 3
    FROZEN = 4
    EXPIRED = 5
    REFUNDED = 6


# Every allowed step. REFUNDED → ACTIVATED is the last part of refunding an emptied gift card; USED → ACTIVATED undoes a
# consumption that ReverseTransaction takes back; an expired card comes back only when a refund extends it.
TRANSITIONS: frozenset[tuple[CouponStatus, CouponStatus]] = frozenset(
    {
        (CouponStatus.UNACTIVATED, CouponStatus.ACTIVATED),
        (CouponStatus.UNACTIVATED, CouponStatus.EXPIRED),
        (CouponStatus.ACTIVATED, CouponStatus.FROZEN),
        (CouponStatus.FROZEN, CouponStatus.ACTIVATED),
        (CouponStatus.FROZEN, CouponStatus.EXPIRED),
        (CouponStatus.ACTIVATED, CouponStatus.USED),
        (CouponStatus.ACTIVATED, CouponStatus.EXPIRED),
        (CouponStatus.USED, CouponStatus.REFUNDED),
        (CouponStatus.REFUNDED, CouponStatus.ACTIVATED),
        (CouponStatus.USED, CouponStatus.ACTIVATED),
        (CouponStatus.EXPIRED, CouponStatus.ACTIVATED),
        (CouponStatus.EXPIRED, CouponStatus.FROZEN),
    }
)

_NOT_USABLE = {
    CouponStatus.UNACTIVATED: "COUPON_UNACTIVATED",
    CouponStatus.USED: "COUPON_USED",
    CouponStatus.FROZEN: "COUPON_FROZEN",
    CouponStatus.EXPIRED: "COUPON_EXPIRED",
    CouponStatus.REFUNDED: "COUPON_REFUNDED",
}


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon as its row holds it. `balance_minor` and `held_minor` are zero for all but gift cards.

    `holds` counts reservations that hold it, `held_minor` is what they hold of the balance, `hold_expires_at_ms` when
    the first of them runs out. Stored figures include holds that ran out since; `domain.hold.counted` leaves those out.
    """

    coupon_id: str
    shard: int
    user_id: int
    batch_id: str
    terms_id: str
    status: CouponStatus
    balance_minor: int
    expires_at_ms: int
    version: int
    last_hash: bytes
    held_minor: int = 0
    holds: int = 0
    hold_expires_at_ms: int | None = None

    @property
    def available_minor(self) -> int:
        """What can be spent of the balance."""
        return self.balance_minor - self.held_minor

    def has_stale_hold(self, now_ms: int) -> bool:
        """Whether a hold ran out that the stored figures still include."""
        return self.hold_expires_at_ms is not None and now_ms >= self.hold_expires_at_ms

    def status_at(self, now_ms: int) -> CouponStatus:
        """The status with the period taken into account: expired to the second, swept or not."""
        if now_ms >= self.expires_at_ms and self.status in (
            CouponStatus.UNACTIVATED,
            CouponStatus.ACTIVATED,
            CouponStatus.FROZEN,
        ):
            return CouponStatus.EXPIRED
        return self.status


@dataclass(frozen=True, slots=True)
class Spend:
    """What a coupon takes for one order, in fen, and how the coupon stands afterwards."""

    coupon: Coupon
    deduction_minor: int
    payable_minor: int
    balance_after_minor: int


def move(coupon: Coupon, status: CouponStatus) -> Coupon:
    """The coupon in another status.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED for a step that the state machine does not have.
    """
    if (coupon.status, status) not in TRANSITIONS:
        raise MeshError("STATUS_TRANSITION_REFUSED", **{"from": coupon.status.name, "to": status.name})
    return replace(coupon, status=status)


def freeze(coupon: Coupon, *, now_ms: int) -> Coupon:
    """The coupon, frozen.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED unless it is activated and not expired.
    """
    return move(replace(coupon, status=coupon.status_at(now_ms)), CouponStatus.FROZEN)


def unfreeze(coupon: Coupon, *, now_ms: int) -> Coupon:
    """The coupon as it was before it was frozen: nothing but its status changed then.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED unless it is frozen and not expired.
    """
    status = coupon.status_at(now_ms)
    if status is not CouponStatus.FROZEN:
        raise MeshError("STATUS_TRANSITION_REFUSED", **{"from": status.name, "to": CouponStatus.ACTIVATED.name})
    return move(coupon, CouponStatus.ACTIVATED)


def end(coupon: Coupon) -> Coupon:
    """The coupon expired or voided; what a gift card holds stays in its balance, for a refund to come."""
    return move(coupon, CouponStatus.EXPIRED)


def check_usable(coupon: Coupon, terms: Terms, *, now_ms: int) -> None:
    """Refuses a coupon that is not in a usable state or outside its period.

    Raises:
        MeshError: COUPON_UNACTIVATED, COUPON_USED, COUPON_FROZEN, COUPON_EXPIRED, COUPON_REFUNDED or
            COUPON_NOT_STARTED.
    """
    status = coupon.status_at(now_ms)
    if status is CouponStatus.EXPIRED:
        raise MeshError("COUPON_EXPIRED", coupon_id=coupon.coupon_id, expires_at=format_utc(coupon.expires_at_ms))
    if status is not CouponStatus.ACTIVATED:
        raise MeshError(_NOT_USABLE[status], coupon_id=coupon.coupon_id)
    if terms.valid_from_ms is not None and now_ms < terms.valid_from_ms:
        raise MeshError("COUPON_NOT_STARTED", coupon_id=coupon.coupon_id, valid_from=format_utc(terms.valid_from_ms))


def spend(coupon: Coupon, terms: Terms, *, merchant_id: str, amount_minor: int, now_ms: int) -> Spend:
    """What consuming the coupon for an order of `amount_minor` takes; for a gift card that is the sum to take.

    Raises:
        MeshError: whatever `check_usable` raises, COUPON_HELD, MERCHANT_NOT_ELIGIBLE, BELOW_MIN_AMOUNT,
            BALANCE_INSUFFICIENT or COUPON_NO_EFFECT.
    """
    check_usable(coupon, terms, now_ms=now_ms)
    if terms.merchant_ids and merchant_id not in terms.merchant_ids:
        raise MeshError("MERCHANT_NOT_ELIGIBLE", merchant_id=merchant_id)
    kind = terms.kind
    if isinstance(kind, GiftCard):
        return _spend_balance(coupon, amount_minor)
    if coupon.hold_expires_at_ms is not None:
        raise MeshError("COUPON_HELD", coupon_id=coupon.coupon_id, until=format_utc(coupon.hold_expires_at_ms))
    if amount_minor < kind.min_amount_minor:
        raise MeshError(
            "BELOW_MIN_AMOUNT", min_amount=format_yuan(kind.min_amount_minor), amount=format_yuan(amount_minor)
        )
    deduction_minor = kind.deduction_minor(amount_minor)
    if deduction_minor == 0:
        raise MeshError("COUPON_NO_EFFECT")
    return Spend(move(coupon, CouponStatus.USED), deduction_minor, amount_minor - deduction_minor, 0)


def _spend_balance(card: Coupon, amount_minor: int) -> Spend:
    if amount_minor > card.available_minor:
        raise MeshError(
            "BALANCE_INSUFFICIENT", balance=format_yuan(card.available_minor), amount=format_yuan(amount_minor)
        )
    left = card.balance_minor - amount_minor
    spent = replace(card, balance_minor=left)
    return Spend(spent if left else move(spent, CouponStatus.USED), amount_minor, 0, left)
