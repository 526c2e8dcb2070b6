"""The service answers what docs/reference/stacking.md says: its carts, and random ones by a second calculation."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.coupon import stacking_page as page
from tests.unit.coupon.quoting import quoted
from tests.unit.coupon.stacking_page import Cart, PaperCoupon, PaperLine

CARTS = list(page.carts())
CATEGORIES = ("tea", "books", "phone")


def test_the_page_has_twenty_carts() -> None:
    assert [cart.number for cart in CARTS] == list(range(1, 21))


@pytest.mark.parametrize("cart", CARTS, ids=lambda cart: f"{cart.number}-{cart.title}")
def test_a_worked_cart_comes_out_as_the_page_says(cart: Cart) -> None:
    answer, refused = quoted(cart.coupons, cart.lines)
    used = [*answer.coupons, *answer.gift_cards]
    assert {
        each.offer.coupon_id: {share.line_id: share.amount_minor for share in each.lines} for each in used
    } == cart.takes
    unused = {each.coupon_id: (each.reason, each.in_favour_of) for each in answer.unused}
    assert {**unused, **{name: (reason, "") for name, reason in refused.items()}} == cart.reasons
    assert answer.payable_minor == cart.payable
    assert answer.proven


@pytest.mark.parametrize("cart", CARTS, ids=lambda cart: f"{cart.number}-{cart.title}")
def test_no_combination_takes_more_than_a_worked_cart_says(cart: Cart) -> None:
    cards = {coupon.name for coupon in cart.coupons if coupon.kind == "card"}
    said = {name: dict(shares) for name, shares in cart.takes.items() if name not in cards}
    assert page.most(cart.coupons, cart.lines) == page.total(said)
    assert page.apply([coupon for coupon in cart.coupons if coupon.name in said], cart.lines) == said


@st.composite
def random_carts(draw: st.DrawFn, *, coupons: int) -> tuple[list[PaperCoupon], list[PaperLine]]:
    """Small amounts on purpose: there every fen of rounding counts."""
    scale = draw(st.sampled_from((5, 60, 3_000)))
    amount = st.integers(1, scale)
    lines = [
        PaperLine(f"l{at}", draw(st.sampled_from(CATEGORIES)), draw(st.integers(0, scale)))
        for at in range(draw(st.integers(1, 4)))
    ]
    lines.append(PaperLine("last", "tea", draw(amount)))
    cart = []
    for stands in range(draw(st.integers(1, coupons))):
        kind = draw(st.sampled_from(("rate", "reduce", "voucher")))
        minimum = draw(st.integers(0, 3 * scale))
        shared: dict[str, Any] = {
            "name": f"{stands:02d}",
            "stands": draw(st.integers(0, 3)) * 100 + stands,
            "minimum": minimum,
            "level": draw(st.sampled_from(page.LEVELS)),
            "base": draw(st.sampled_from(("ORIGINAL", "REMAINING"))),
            "group": draw(st.sampled_from(("", "x", "y", f"own {stands}", f"own {stands}"))),
            "exclusive": draw(st.integers(0, 19)) == 0,
            "categories": frozenset(draw(st.sets(st.sampled_from(CATEGORIES), max_size=2))),
        }
        if kind == "rate":
            percent = Fraction(draw(st.integers(1, 9_999)), 10_000)
            cart.append(PaperCoupon(kind=kind, percent=percent, cap=draw(st.none() | amount), **shared))
        else:
            cart.append(PaperCoupon(kind=kind, amount=draw(amount), **shared))
    return cart, lines


def assert_is_best(cart: list[PaperCoupon], lines: list[PaperLine]) -> None:
    answer, _ = quoted(cart, lines)
    used = {
        each.offer.coupon_id: {share.line_id: share.amount_minor for share in each.lines} for each in answer.coupons
    }
    chosen = [coupon for coupon in cart if coupon.name in used]
    assert answer.proven
    assert page.apply(chosen, lines) == used
    assert page.total(used) == page.most(cart, lines)
    for coupon in chosen:
        fewer = page.apply([other for other in chosen if other is not coupon], lines)
        assert fewer is None or page.total(fewer) < page.total(used), f"{coupon.name} is used in vain"


@settings(max_examples=300, deadline=None)
@given(random_carts(coupons=7))
def test_no_combination_takes_more_than_the_quoted_one(cart: tuple[list[PaperCoupon], list[PaperLine]]) -> None:
    assert_is_best(*cart)


@settings(max_examples=8, deadline=None)
@given(random_carts(coupons=11))
def test_nor_with_more_coupons(cart: tuple[list[PaperCoupon], list[PaperLine]]) -> None:
    assert_is_best(*cart)


@settings(max_examples=200, deadline=None)
@given(
    random_carts(coupons=4),
    st.lists(st.tuples(st.integers(1, 3_000), st.sets(st.sampled_from(CATEGORIES), max_size=2)), max_size=4),
)
def test_gift_cards_pay_what_is_left_and_never_more(
    cart: tuple[list[PaperCoupon], list[PaperLine]], cards: list[tuple[int, set[str]]]
) -> None:
    coupons, lines = cart
    coupons = [*coupons, *(
        PaperCoupon(f"card {at}", 900 + at, "card", amount=balance, categories=frozenset(categories))
        for at, (balance, categories) in enumerate(cards)
    )]  # fmt: skip
    answer, _ = quoted(coupons, lines)
    left = {line.name: line.price for line in lines}
    for each in [*answer.coupons, *answer.gift_cards]:
        assert sum(share.amount_minor for share in each.lines) == each.deduction_minor > 0
        for share in each.lines:
            left[share.line_id] -= share.amount_minor
    assert min(left.values()) >= 0
    assert answer.payable_minor == sum(left.values())
    paid = {each.offer.coupon_id: each.deduction_minor for each in answer.gift_cards}
    for card in coupons:
        if card.kind == "card" and any(left[line.name] and card.covers(line) for line in lines):
            assert paid[card.name] == card.amount, "a card with money left would have paid"
