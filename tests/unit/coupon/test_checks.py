"""Which uses of a coupon are refused, by which reasons, in which order; scopes, hours, lines, and what would help."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from coupon_svc.app.caps import spend_cap_reached, uses_limit_reached
from coupon_svc.domain.batch import Batch, BlockScope, Caps, RecallState
from coupon_svc.domain.checks import Use, failures
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.hours import Hours, is_open, next_opening_ms
from coupon_svc.domain.order import Order
from coupon_svc.domain.order_lines import Line, check_names
from coupon_svc.domain.remedies import REMEDIES, remedy
from coupon_svc.domain.spending import LineShare, spend_use
from coupon_svc.domain.terms import (
    Base,
    CashVoucher,
    Discount,
    GiftCard,
    Kind,
    Level,
    Stacking,
    Terms,
    Threshold,
    check_terms,
)
from meshkit.errors import MeshError

NOW_MS = 1_800_000_000_000
EXPIRES_MS = NOW_MS + 1_000_000
SHANGHAI = "Asia/Shanghai"


def use(kind: Kind, order: Order, *, status: CouponStatus = CouponStatus.ACTIVATED, **terms: Any) -> Use:
    stated = replace(Terms(kind, EXPIRES_MS), **terms)
    coupon = Coupon(
        coupon_id="0000000000000000042",
        shard=42,
        user_id=42,
        batch_id="0000000000000000001",
        terms_id="0000000000000000002",
        status=status,
        balance_minor=stated.opening_balance_minor,
        expires_at_ms=EXPIRES_MS,
        version=1,
        last_hash=bytes(32),
    )
    return Use(coupon, stated, order, NOW_MS)


def order(*lines: tuple[str, str, int], amount_minor: int | None = None, merchant_id: str = "m") -> Order:
    """An order of (category, sku, fen) lines, which are named 1, 2, …"""
    made = Order.of_lines(
        merchant_id, [Line(str(at), sku, category, "", fen, 1) for at, (category, sku, fen) in enumerate(lines, 1)]
    )
    return made if amount_minor is None else replace(made, amount_minor=amount_minor)


def reasons(of: Use) -> list[str]:
    return [failure.reason for failure in failures(of)]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(SHANGHAI)).astimezone(UTC).timestamp() * 1000)


def test_a_coupon_for_some_goods_needs_the_lines() -> None:
    assert reasons(use(CashVoucher(100), Order("m", 500), categories=frozenset({"tea"}))) == ["LINES_REQUIRED"]
    assert reasons(use(CashVoucher(100), Order("m", 500), skus=frozenset({"s1"}))) == ["LINES_REQUIRED"]
    assert reasons(use(CashVoucher(100), Order("m", 500), merchant_ids=frozenset({"m"}))) == []


def test_a_coupon_takes_from_its_eligible_lines_only() -> None:
    of = use(
        Discount(5_000),
        order(("tea", "s1", 301), ("books", "s2", 999), ("tea", "s3", 100)),
        categories=frozenset({"tea"}),
    )
    spent = spend_use(of)
    assert spent.deduction_minor == 201
    assert spent.payable_minor == 1_199
    assert spent.lines == (LineShare("1", 151), LineShare("3", 50))


def test_a_line_must_match_merchant_category_and_sku_each_where_any_is_named() -> None:
    named = frozenset({"n"})
    terms: dict[str, Any] = {"categories": frozenset({"tea"}), "skus": frozenset({"s1"}), "merchant_ids": named}
    lines = [
        Line("all", "s1", "tea", "n", 100, 1),
        Line("other merchant", "s1", "tea", "m", 100, 1),
        Line("the order's merchant", "s1", "tea", "", 100, 1),
        Line("other category", "s1", "books", "n", 100, 1),
        Line("other sku", "s2", "tea", "n", 100, 1),
    ]
    spent = spend_use(use(CashVoucher(100), Order.of_lines("m", lines), **terms))
    assert [share.line_id for share in spent.lines] == ["all"]


def test_the_minimum_counts_eligible_lines_only() -> None:
    lines = order(("tea", "", 9_999), ("books", "", 5_000))
    tea: dict[str, Any] = {"categories": frozenset({"tea"})}
    assert reasons(use(Threshold(10_000, 100), lines, **tea)) == ["BELOW_MIN_AMOUNT"]
    assert reasons(use(Threshold(9_999, 100), lines, **tea)) == []


def test_a_held_coupon_is_refused_but_a_card_gives_what_is_available() -> None:
    held = use(CashVoucher(100), Order("m", 500))
    held = replace(held, coupon=replace(held.coupon, holds=1, hold_expires_at_ms=EXPIRES_MS))
    assert reasons(held) == ["COUPON_HELD"]
    card = use(GiftCard(500), Order("m", 301))
    card = replace(card, coupon=replace(card.coupon, holds=1, held_minor=200, hold_expires_at_ms=EXPIRES_MS))
    assert reasons(card) == ["BALANCE_INSUFFICIENT"]
    assert reasons(replace(card, order=Order("m", 300))) == []


def test_lines_must_sum_to_the_amount_and_of_a_gift_card_to_no_less() -> None:
    lines = order(("tea", "", 500), amount_minor=499)
    assert reasons(use(CashVoucher(100), lines)) == ["LINES_AMOUNT_MISMATCH"]
    assert reasons(use(GiftCard(10_000), lines)) == []
    more = replace(lines, amount_minor=501)
    assert reasons(use(GiftCard(10_000), more))[0] == "LINES_AMOUNT_MISMATCH"


def test_a_gift_card_pays_for_eligible_goods_only() -> None:
    lines = order(("tea", "", 500), ("books", "", 500), amount_minor=501)
    tea: dict[str, Any] = {"categories": frozenset({"tea"})}
    assert reasons(use(GiftCard(10_000), lines, **tea)) == ["LINES_NOT_ELIGIBLE"]
    spent = spend_use(use(GiftCard(10_000), replace(lines, amount_minor=500), **tea))
    assert (spent.deduction_minor, spent.balance_after_minor) == (500, 9_500)
    assert spent.lines == (LineShare("1", 500),)


def test_explaining_names_every_failure_in_the_order_of_consuming() -> None:
    hopeless = use(
        Threshold(10_000, 100),
        order(("books", "", 500), amount_minor=600, merchant_id="elsewhere"),
        status=CouponStatus.FROZEN,
        valid_from_ms=NOW_MS + 1,
        merchant_ids=frozenset({"m"}),
        categories=frozenset({"tea"}),
        hours=(Hours(frozenset({6}), 0, 1),),
    )
    batch = Batch("b", "t", "batch", None, 1, 12, BlockScope.BOTH, NOW_MS)
    hopeless = replace(hopeless, batch=batch, account_frozen=True, user_id=43)
    assert reasons(hopeless) == [
        "COUPON_NOT_OWNED",
        "ACCOUNT_FROZEN",
        "BATCH_BLOCKED",
        "COUPON_FROZEN",
        "COUPON_NOT_STARTED",
        "MERCHANT_NOT_ELIGIBLE",
        "OUTSIDE_HOURS",
        "LINES_AMOUNT_MISMATCH",
        "LINES_NOT_ELIGIBLE",
        "BELOW_MIN_AMOUNT",
    ]
    with pytest.raises(MeshError, match="COUPON_NOT_OWNED"):
        spend_use(hopeless)


def test_what_takes_nothing_is_said_only_when_nothing_else_is_in_the_way() -> None:
    assert reasons(use(Discount(9_999), Order("m", 1))) == ["COUPON_NO_EFFECT"]
    assert reasons(use(Discount(9_999, min_amount_minor=2), Order("m", 1))) == ["BELOW_MIN_AMOUNT"]


def test_every_failure_has_a_remedy_that_its_values_fill() -> None:
    tea: dict[str, Any] = {"categories": frozenset({"tea"}), "skus": frozenset(f"s{number}" for number in range(9))}
    hopeless = use(
        GiftCard(5), order(("b", "", 7), amount_minor=9), merchant_ids=frozenset({"n"}), valid_from_ms=NOW_MS + 1, **tea
    )
    hopeless = replace(
        hopeless,
        account_frozen=True,
        user_id=43,
        batch=Batch("b", "t", "batch", None, 1, 12, BlockScope.CONSUME, NOW_MS),
        terms=replace(hopeless.terms, hours=(Hours(frozenset({6}), 0, 1),)),
    )
    uses = [replace(hopeless, coupon=replace(hopeless.coupon, status=status)) for status in CouponStatus]
    uses += [use(Discount(9_999), Order("m", 1)), use(Threshold(9, 1), Order("m", 1), **tea)]
    held = use(CashVoucher(1), Order("m", 1))
    uses += [replace(held, coupon=replace(held.coupon, hold_expires_at_ms=EXPIRES_MS))]
    capped = Batch("b", "t", "batch", None, 1, 12, BlockScope.NONE, NOW_MS, Caps(2, 100), RecallState.RUNNING)
    uses += [replace(held, batch=capped)]
    seen = {failure.reason: failure for each in uses for failure in failures(each)}
    assert seen.keys() == REMEDIES.keys() - {"USES_LIMIT_REACHED", "SPEND_CAP_REACHED"}
    seen |= {each.reason: each for each in (uses_limit_reached(capped), spend_cap_reached(capped, 5))}
    for failure in seen.values():
        for text in remedy(failure):
            assert text
            assert "{" not in text


@pytest.mark.parametrize(
    ("local", "open_then"),
    [
        ("2026-01-02T08:59:59", False),  # Friday
        ("2026-01-02T09:00:00", True),
        ("2026-01-02T17:29:59", True),
        ("2026-01-02T17:30:00", False),
        ("2026-01-03T10:00:00", False),  # Saturday
        ("2026-01-03T23:59:59", True),
        ("2026-01-04T00:00:00", False),
    ],
)
def test_hours_are_half_open_and_in_the_zone_of_the_batch(local: str, open_then: bool) -> None:
    windows = [Hours(frozenset({1, 2, 3, 4, 5}), 9 * 60, 17 * 60 + 30), Hours(frozenset({6}), 20 * 60, 24 * 60)]
    assert is_open(windows, SHANGHAI, at(local)) is open_then


@pytest.mark.parametrize(
    ("local", "opens"),
    [
        ("2026-01-02T08:00:00", "2026-01-02T09:00:00"),
        ("2026-01-02T18:00:00", "2026-01-05T09:00:00"),
        ("2026-01-05T09:00:00", "2026-01-12T09:00:00"),
    ],
)
def test_the_next_opening_is_the_first_one_still_ahead(local: str, opens: str) -> None:
    windows = [Hours(frozenset({1}), 540, 600)] if opens != "2026-01-02T09:00:00" else [Hours(frozenset({5}), 540, 600)]
    assert next_opening_ms(windows, SHANGHAI, at(local)) == at(opens)


def test_terms_that_were_stored_before_scopes_are_read_with_defaults() -> None:
    stored = json.loads(Terms(CashVoucher(100), EXPIRES_MS).to_json())
    for later in ("categories", "skus", "hours", "stacking"):
        del stored[later]
    read = Terms.from_json(json.dumps(stored))
    assert read == Terms(CashVoucher(100), EXPIRES_MS)
    assert read.stacking == Stacking(Level.PLATFORM, Base.REMAINING, "", exclusive=False)


def test_scopes_and_stacking_are_the_same_after_they_were_stored() -> None:
    terms = Terms(
        CashVoucher(100),
        EXPIRES_MS,
        categories=frozenset({"tea", "books"}),
        skus=frozenset({"s"}),
        hours=(Hours(frozenset({1, 7}), 0, 1440), Hours(frozenset({2}), 60, 61)),
        stacking=Stacking(Level.ITEM, Base.ORIGINAL, "双11", exclusive=True),
    )
    assert Terms.from_json(terms.to_json()) == terms


@pytest.mark.parametrize(
    "wrong",
    [
        Terms(GiftCard(100), EXPIRES_MS, stacking=Stacking(exclusive=True)),
        Terms(CashVoucher(100), EXPIRES_MS, hours=(Hours(frozenset({1}), 600, 600),)),
        Terms(CashVoucher(100), EXPIRES_MS, hours=(Hours(frozenset(), 600, 700),)),
    ],
)
def test_scopes_that_make_no_sense_are_refused(wrong: Terms) -> None:
    with pytest.raises(MeshError, match="BATCH_TERMS_INVALID"):
        check_terms(wrong, now_ms=NOW_MS)


def test_lines_have_names_of_their_own_and_sum_to_what_an_amount_may_be() -> None:
    line = Line("1", "", "", "", 999_999_999_999, 1)
    with pytest.raises(MeshError, match="VALIDATION_FAILED"):
        check_names([line, line])
    with pytest.raises(MeshError, match="AMOUNT_TOO_LARGE"):
        Order.of_lines("m", [line, replace(line, line_id="2")])
