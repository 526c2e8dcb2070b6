"""What consuming one coupon for one order takes, and how the coupon stands afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coupon_svc.domain.checks import Use, refuse_unusable
from coupon_svc.domain.coupon import Coupon, CouponStatus, move
from coupon_svc.domain.deduction import deduct
from coupon_svc.domain.order import Order
from coupon_svc.domain.terms import GiftCard, Terms


@dataclass(frozen=True, slots=True)
class LineShare:
    """What a deduction takes off one line, in fen."""

    line_id: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Spend:
    """What a coupon takes for one order, in fen, and how the coupon stands afterwards.

    `lines` says so for each eligible line; it is empty for an order without lines.
    """

    coupon: Coupon
    deduction_minor: int
    payable_minor: int
    balance_after_minor: int
    lines: tuple[LineShare, ...] = ()


def spend(coupon: Coupon, terms: Terms, *, merchant_id: str, amount_minor: int, now_ms: int) -> Spend:
    """What consuming the coupon for an order of `amount_minor` without lines takes.

    Raises:
        MeshError: what `spend_use` raises.
    """
    return spend_use(Use(coupon, terms, Order(merchant_id, amount_minor), now_ms))


def spend_use(use: Use) -> Spend:
    """What using the coupon takes; for a gift card the order's amount is the sum to take.

    Raises:
        MeshError: the first check that fails; see `coupon_svc.domain.checks`.
    """
    refuse_unusable(use)
    order, coupon = use.order, use.coupon
    taken = deduct(
        use.terms.kind,
        base_minor=use.eligible_minor,
        left_minor=[order.prices_minor[number] for number in use.eligible],
        balance_minor=order.amount_minor,
    )
    lines: tuple[LineShare, ...] = ()
    if order.lines:
        shares = zip(use.eligible, taken.shares_minor, strict=True)
        lines = tuple(LineShare(order.lines[number].line_id, share) for number, share in shares)
    left_minor = coupon.balance_minor - taken.total_minor if isinstance(use.terms.kind, GiftCard) else 0
    spent = replace(coupon, balance_minor=left_minor)
    after = spent if left_minor else move(spent, CouponStatus.USED)
    return Spend(after, taken.total_minor, order.amount_minor - taken.total_minor, left_minor, lines)
