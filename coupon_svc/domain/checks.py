"""Every check that a use of a coupon must pass, in the order in which consuming names what fails first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.deduction import taken_minor
from coupon_svc.domain.hours import is_open, next_opening_ms
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.order import Order
from coupon_svc.domain.order_lines import lines_amount_mismatch
from coupon_svc.domain.terms import GiftCard, Terms
from coupon_svc.domain.times import format_utc
from meshkit.errors import MeshError

_NOT_USABLE = {
    CouponStatus.UNACTIVATED: "COUPON_UNACTIVATED",
    CouponStatus.USED: "COUPON_USED",
    CouponStatus.FROZEN: "COUPON_FROZEN",
    CouponStatus.EXPIRED: "COUPON_EXPIRED",
    CouponStatus.REFUNDED: "COUPON_REFUNDED",
}
# How many names a refusal lists.
_NAMED = 5


@dataclass(frozen=True)
class Use:
    """A coupon that shall be used for an order, with all that decides whether it can.

    `user_id` is who wants to use it, where that is asked; `batch` and `account_frozen` are what is known of blocks.
    """

    coupon: Coupon
    terms: Terms
    order: Order
    now_ms: int
    batch: Batch | None = None
    account_frozen: bool = False
    user_id: int | None = None

    @cached_property
    def eligible(self) -> tuple[int, ...]:
        """Positions of the eligible lines among the order's parts."""
        return self.terms.eligible(self.order.parts, self.order.merchant_id)

    @cached_property
    def eligible_minor(self) -> int:
        """What the eligible lines amount to."""
        return sum(self.order.prices_minor[number] for number in self.eligible)


Check = Callable[[Use], MeshError | None]


def _owner(use: Use) -> MeshError | None:
    if use.user_id is None or use.coupon.user_id in {0, use.user_id}:
        return None
    return MeshError("COUPON_NOT_OWNED", coupon_id=use.coupon.coupon_id)


def _account(use: Use) -> MeshError | None:
    return MeshError("ACCOUNT_FROZEN", user_id=str(use.coupon.user_id)) if use.account_frozen else None


def _batch(use: Use) -> MeshError | None:
    try:
        if use.batch is not None:
            use.batch.refuse_when_blocked(BlockScope.CONSUME)
    except MeshError as refusal:
        return refusal
    return None


def _status(use: Use) -> MeshError | None:
    coupon, status = use.coupon, use.coupon.status_at(use.now_ms)
    if status is CouponStatus.EXPIRED:
        return MeshError("COUPON_EXPIRED", coupon_id=coupon.coupon_id, expires_at=format_utc(coupon.expires_at_ms))
    return None if status is CouponStatus.ACTIVATED else MeshError(_NOT_USABLE[status], coupon_id=coupon.coupon_id)


def _period(use: Use) -> MeshError | None:
    valid_from_ms = use.terms.valid_from_ms
    if valid_from_ms is None or use.now_ms >= valid_from_ms:
        return None
    return MeshError("COUPON_NOT_STARTED", coupon_id=use.coupon.coupon_id, valid_from=format_utc(valid_from_ms))


def _merchant(use: Use) -> MeshError | None:
    merchants = use.terms.merchant_ids
    at = use.order.merchant_id
    if not merchants or any((line.merchant_id or at) in merchants for line in use.order.parts):
        return None
    return MeshError("MERCHANT_NOT_ELIGIBLE", merchant_id=at, merchants=_named(merchants))


def _held(use: Use) -> MeshError | None:
    until_ms = use.coupon.hold_expires_at_ms
    if until_ms is None or _is_card(use):
        return None
    return MeshError("COUPON_HELD", coupon_id=use.coupon.coupon_id, until=format_utc(until_ms))


def _hours(use: Use) -> MeshError | None:
    terms = use.terms
    if not terms.hours or is_open(terms.hours, terms.time_zone, use.now_ms):
        return None
    opening_ms = next_opening_ms(terms.hours, terms.time_zone, use.now_ms)
    return MeshError("OUTSIDE_HOURS", coupon_id=use.coupon.coupon_id, next_from=format_utc(opening_ms))


def _lines_sum(use: Use) -> MeshError | None:
    order, total_minor = use.order, sum(use.order.prices_minor)
    # A gift card may pay a part of the order; every other coupon is used for the whole of it.
    right = total_minor >= order.amount_minor if _is_card(use) else total_minor == order.amount_minor
    return None if right else lines_amount_mismatch(total_minor, order.amount_minor)


def _lines_given(use: Use) -> MeshError | None:
    if use.order.lines or not use.terms.needs_lines:
        return None
    return MeshError("LINES_REQUIRED", coupon_id=use.coupon.coupon_id)


def _lines_eligible(use: Use) -> MeshError | None:
    """Something must be eligible; what a gift card shall pay must be eligible altogether."""
    terms, order = use.terms, use.order
    if not order.lines or use.eligible_minor >= (order.amount_minor if _is_card(use) else 1):
        return None
    return MeshError(
        "LINES_NOT_ELIGIBLE",
        eligible=format_yuan(use.eligible_minor),
        categories=_named(terms.categories),
        skus=_named(terms.skus),
    )


def _minimum(use: Use) -> MeshError | None:
    kind = use.terms.kind
    if isinstance(kind, GiftCard):
        return None
    # Of an order without lines, no more can be eligible than all of it.
    reached_minor = use.eligible_minor if use.order.lines else use.order.amount_minor
    if reached_minor >= kind.min_amount_minor:
        return None
    return MeshError(
        "BELOW_MIN_AMOUNT", min_amount=format_yuan(kind.min_amount_minor), amount=format_yuan(reached_minor)
    )


def _balance(use: Use) -> MeshError | None:
    card, wanted_minor = use.coupon, use.order.amount_minor
    if not _is_card(use) or wanted_minor <= card.available_minor:
        return None
    return MeshError(
        "BALANCE_INSUFFICIENT", balance=format_yuan(card.available_minor), amount=format_yuan(wanted_minor)
    )


def _effect(use: Use) -> MeshError | None:
    kind, base_minor = use.terms.kind, use.eligible_minor
    if isinstance(kind, GiftCard) or base_minor < max(kind.min_amount_minor, 1):
        return None
    return None if taken_minor(kind, base_minor=base_minor, left_minor=base_minor) else MeshError("COUPON_NO_EFFECT")


# The first that fails is what consuming answers; ExplainCoupon names them all.
CHECKS: tuple[Check, ...] = (
    _owner,
    _account,
    _batch,
    _status,
    _period,
    _merchant,
    _held,
    _hours,
    _lines_sum,
    _lines_given,
    _lines_eligible,
    _minimum,
    _balance,
    _effect,
)


def failures(use: Use) -> Iterator[MeshError]:
    """Every check that fails, in order; none when the coupon can be used."""
    for check in CHECKS:
        failure = check(use)
        if failure is not None:
            yield failure


def refuse_unusable(use: Use) -> None:
    """Refuses a use by the first check that fails.

    Raises:
        MeshError: one of the reasons in `CHECKS`.
    """
    for failure in failures(use):
        raise failure


def _is_card(use: Use) -> bool:
    return isinstance(use.terms.kind, GiftCard)


def _named(names: frozenset[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    return f"{shown}, …" if len(names) > _NAMED else shown
