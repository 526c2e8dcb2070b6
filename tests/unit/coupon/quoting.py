"""Turns carts as docs/reference/stacking.md writes them into what the service calculates with."""

from __future__ import annotations

from collections.abc import Sequence

from coupon_svc.domain.checks import Use
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.order import Order
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.quote import Offer, Quote, admit, quote
from coupon_svc.domain.terms import Base, CashVoucher, Discount, GiftCard, Kind, Level, Stacking, Terms, Threshold
from meshkit.errors import MeshError
from tests.unit.coupon.stacking_page import PaperCoupon, PaperLine

NOW_MS = 1_800_000_000_000


def order_of(lines: Sequence[PaperLine]) -> Order:
    return Order.of_lines("m", [Line(line.name, "", line.category, "", line.price, 1) for line in lines])


def use_of(paper: PaperCoupon, order: Order) -> Use:
    stacking = Stacking(Level[paper.level], Base[paper.base], paper.group, paper.exclusive)
    expires_at_ms = NOW_MS + 1_000 * (1 + paper.stands)
    terms = Terms(
        _kind(paper),
        expires_at_ms,
        categories=paper.categories,
        stacking=stacking if paper.kind != "card" else Stacking(),
    )
    coupon = Coupon(
        coupon_id=paper.name,
        shard=0,
        user_id=128,
        batch_id="b",
        terms_id="t",
        status=CouponStatus.ACTIVATED,
        balance_minor=terms.opening_balance_minor,
        expires_at_ms=expires_at_ms,
        version=1,
        last_hash=bytes(32),
    )
    return Use(coupon, terms, order, NOW_MS)


def _kind(paper: PaperCoupon) -> Kind:
    match paper.kind:
        case "rate":
            rate_e4 = 10_000 - paper.percent * 10_000
            assert rate_e4.denominator == 1
            return Discount(int(rate_e4), paper.cap, paper.minimum)
        case "reduce":
            return Threshold(paper.minimum, paper.amount)
        case "voucher":
            return CashVoucher(paper.amount, paper.minimum)
        case _:
            return GiftCard(paper.amount)


def quoted(coupons: Sequence[PaperCoupon], lines: Sequence[PaperLine]) -> tuple[Quote, dict[str, str]]:
    """The service's answer, and of the coupons that fail a check the reasons."""
    order = order_of(lines)
    offers: list[Offer] = []
    refused: dict[str, str] = {}
    for paper in coupons:
        try:
            offers.append(admit(use_of(paper, order)))
        except MeshError as failure:
            refused[paper.name] = failure.reason
    return quote(offers, order), refused
