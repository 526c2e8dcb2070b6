"""How refunds spread over an order, whatever their order and sizes, and what they do to a coupon."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.refund import (
    CASH,
    NO_LINE,
    Cell,
    PaidLine,
    Tender,
    WantedLine,
    by_line_with_cash,
    by_tender,
    give_back,
    left_cells,
    order_part_minor,
    paid_cells,
    refund_of_lines,
    refund_of_transaction,
    replacement_expiry_ms,
)
from coupon_svc.domain.refund_terms import ExpiredCardPolicy, RefundTerms, UsedCouponPolicy
from coupon_svc.domain.terms import CashVoucher, GiftCard, Kind, Terms, check_terms
from meshkit.errors import MeshError

DAY_MS = 86_400_000
# 2026-08-11 10:00 in Shanghai.
NOW_MS = int(datetime(2026, 8, 11, 2, tzinfo=UTC).timestamp()) * 1000
EXPIRES_MS = NOW_MS + DAY_MS


def midnight_after(days: int) -> int:
    """The start of the day after `days` whole days in Shanghai."""
    return int(datetime(2026, 8, 11, 16, tzinfo=UTC).timestamp()) * 1000 + days * DAY_MS


# --- spreading ---


def tender(name: str, deduction_minor: int, *lines: tuple[str, int, int], order: int = 0) -> Tender:
    return Tender(name, deduction_minor, order, tuple(PaidLine(*line) for line in lines))


def test_what_no_coupon_took_was_paid_in_cash() -> None:
    off = tender("TX1", 20, ("a", 100, 13), ("b", 50, 7))
    card = tender("TX2", 60, ("a", 100, 60), ("b", 50, 0))
    assert paid_cells([off, card]) == {
        Cell("a", "TX1"): 13,
        Cell("a", "TX2"): 60,
        Cell("a", CASH): 27,
        Cell("b", "TX1"): 7,
        Cell("b", "TX2"): 0,
        Cell("b", CASH): 43,
    }


def test_consumes_without_lines_are_one_line_as_large_as_the_order() -> None:
    off, card = tender("TX1", 20, order=150), tender("TX2", 100)
    assert paid_cells([off, card]) == {Cell(NO_LINE, "TX1"): 20, Cell(NO_LINE, "TX2"): 100, Cell(NO_LINE, CASH): 30}
    assert paid_cells([card]) == {Cell(NO_LINE, "TX2"): 100, Cell(NO_LINE, CASH): 0}


def test_a_consume_without_lines_beside_lines_is_a_line_of_its_own() -> None:
    paid = paid_cells([tender("TX2", 30), tender("TX1", 20, ("a", 100, 20))])
    assert paid == {Cell("a", "TX1"): 20, Cell("a", CASH): 80, Cell(NO_LINE, "TX2"): 30, Cell(NO_LINE, CASH): 0}
    assert list(by_line_with_cash(paid.items())) == ["a", NO_LINE]


def test_a_line_goes_back_to_what_paid_for_it_in_proportion() -> None:
    left = {Cell("a", "TX1"): 20, Cell("a", "TX2"): 60, Cell("a", CASH): 20, Cell("b", CASH): 5}
    assert refund_of_lines(left, [WantedLine("a", 50)], order_id="o") == {
        Cell("a", "TX1"): 10,
        Cell("a", "TX2"): 30,
        Cell("a", CASH): 10,
    }
    assert refund_of_lines(left, [], order_id="o") == left


@pytest.mark.parametrize(
    ("wanted", "reason", "metadata"),
    [
        (WantedLine("a", 101), "REFUND_EXCEEDS_PAID", {"of": "a", "amount": "1.01", "left": "1.00"}),
        (WantedLine("b"), "ALREADY_REFUNDED", {"of": "b"}),
        (WantedLine("b", 1), "REFUND_EXCEEDS_PAID", {"of": "b", "amount": "0.01", "left": "0.00"}),
        (WantedLine("c"), "ORDER_LINE_NOT_FOUND", {"order_id": "o", "line_id": "c"}),
        (WantedLine(""), "ORDER_LINE_NOT_FOUND", {"order_id": "o", "line_id": ""}),
    ],
)
def test_more_than_is_left_is_refused_with_what_is_left(wanted: WantedLine, reason: str, metadata: object) -> None:
    left = {Cell("a", "TX1"): 40, Cell("a", CASH): 60, Cell("b", "TX1"): 0}
    with pytest.raises(MeshError) as refused:
        refund_of_lines(left, [wanted], order_id="o")
    assert (refused.value.reason, refused.value.metadata) == (reason, metadata)


def test_an_order_with_nothing_left_is_refunded_already() -> None:
    with pytest.raises(MeshError) as refused:
        refund_of_lines({Cell("a", CASH): 0}, [], order_id="o")
    assert (refused.value.reason, refused.value.metadata) == ("ALREADY_REFUNDED", {"of": "o"})


@st.composite
def orders(draw: st.DrawFn) -> list[Tender]:
    """One to four transactions over one to five lines, none taking more of a line than is left of it."""
    prices = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
    left = list(prices)
    tenders = []
    for number in range(draw(st.integers(1, 4))):
        taken = [draw(st.integers(0, rest)) for rest in left]
        left = [rest - part for rest, part in zip(left, taken, strict=True)]
        lines = [(f"line-{at}", price, part) for at, (price, part) in enumerate(zip(prices, taken, strict=True))]
        tenders.append(tender(f"TX{number}", sum(taken), *lines))
    return tenders


@given(orders(), st.data())
def test_any_sequence_of_refunds_sums_to_exactly_what_was_paid(order: list[Tender], data: st.DataObject) -> None:
    paid = paid_cells(order)
    prices = {line.line_id: line.amount_minor for line in order[0].lines}
    refunded: dict[Cell, int] = dict.fromkeys(paid, 0)
    for _ in range(data.draw(st.integers(0, 25))):
        left = left_cells(paid, refunded)
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from([each.transaction_id for each in order]))
            own = {cell: minor for cell, minor in left.items() if cell.tender == name}
            amount = data.draw(st.integers(0, sum(own.values())))
            given_back = refund_of_transaction(own, amount, of=name)
        else:
            line_id = data.draw(st.sampled_from(sorted(prices)))
            of_line = sum(minor for cell, minor in left.items() if cell.line_id == line_id)
            amount = data.draw(st.integers(0, of_line))
            given_back = refund_of_lines(left, [WantedLine(line_id, amount)], order_id="o")
        assert sum(given_back.values()) == amount
        for cell, minor in given_back.items():
            assert 0 <= minor <= left[cell]
            refunded[cell] += minor
    left = left_cells(paid, refunded)
    if any(left.values()):
        for cell, minor in refund_of_lines(left, [], order_id="o").items():
            refunded[cell] += minor
    # Nothing is left open, in no cell: so every line, every transaction and the cash close exactly.
    assert refunded == paid
    assert by_tender(refunded).get(CASH, 0) == sum(prices.values()) - sum(each.deduction_minor for each in order)
    assert {line: whole for line, (whole, _) in by_line_with_cash(refunded.items()).items()} == prices


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), st.integers(0, 200_000))
def test_the_order_amounts_that_go_with_parts_sum_to_the_order(parts: list[int], order_minor: int) -> None:
    left, order_left = sum(parts), order_minor
    for part in parts:
        order_part = order_part_minor(order_left, part, left)
        assert 0 <= order_part <= order_left
        left, order_left = left - part, order_left - order_part
    assert order_left == 0


# --- what a coupon does ---


def coupon(status: CouponStatus = CouponStatus.ACTIVATED, balance_minor: int = 0) -> Coupon:
    return Coupon(
        coupon_id="0000000000000000042",
        shard=42,
        user_id=42,
        batch_id="0000000000000000001",
        terms_id="0000000000000000002",
        status=status,
        balance_minor=balance_minor,
        expires_at_ms=EXPIRES_MS,
        version=7,
        last_hash=bytes(32),
    )


def terms(kind: Kind, **refund: object) -> Terms:
    return Terms(kind, EXPIRES_MS, refund=RefundTerms(**refund))  # type: ignore[arg-type]  # each by its field's name


CARD = GiftCard(10_000)


def steps_of(
    card: Coupon,
    *,
    now_ms: int = NOW_MS,
    ended_from: CouponStatus | None = None,
    closes: bool = True,
    of: Terms | None = None,
) -> list[tuple[JournalKind, CouponStatus, int]]:
    """(kind, status, balance) of each step when 30.00 go back; versions are not its business."""
    steps = give_back(card, of or terms(CARD), amount_minor=3_000, closes=closes, ended_from=ended_from, now_ms=now_ms)
    assert all(step.coupon.version == card.version for step in steps)
    return [(step.kind, step.coupon.status, step.coupon.balance_minor) for step in steps]


def test_a_card_with_a_balance_is_credited_in_one_step() -> None:
    assert steps_of(coupon(balance_minor=1_000)) == [(JournalKind.REFUNDED, CouponStatus.ACTIVATED, 4_000)]


def test_an_emptied_card_goes_from_used_over_refunded_to_activated() -> None:
    assert steps_of(coupon(CouponStatus.USED), closes=False) == [
        (JournalKind.REFUNDED, CouponStatus.REFUNDED, 3_000),
        (JournalKind.REACTIVATED, CouponStatus.ACTIVATED, 3_000),
    ]


def test_a_frozen_card_is_credited_and_stays_frozen() -> None:
    assert steps_of(coupon(CouponStatus.FROZEN, 1_000)) == [(JournalKind.REFUNDED, CouponStatus.FROZEN, 4_000)]


@pytest.mark.parametrize(
    ("status", "ended_from", "steps"),
    [
        (CouponStatus.ACTIVATED, None, [CouponStatus.ACTIVATED, CouponStatus.ACTIVATED]),
        (CouponStatus.EXPIRED, CouponStatus.ACTIVATED, [CouponStatus.EXPIRED, CouponStatus.ACTIVATED]),
        (CouponStatus.FROZEN, None, [CouponStatus.FROZEN, CouponStatus.FROZEN]),
        (CouponStatus.EXPIRED, CouponStatus.FROZEN, [CouponStatus.EXPIRED, CouponStatus.FROZEN]),
        (CouponStatus.USED, None, [CouponStatus.REFUNDED, CouponStatus.ACTIVATED, CouponStatus.ACTIVATED]),
    ],
)
def test_an_expired_card_is_credited_and_extended_by_thirty_days(
    status: CouponStatus, ended_from: CouponStatus | None, steps: list[CouponStatus]
) -> None:
    card = replace(coupon(status), expires_at_ms=NOW_MS)
    given_back = give_back(card, terms(CARD), amount_minor=3_000, closes=True, ended_from=ended_from, now_ms=NOW_MS)
    assert [step.coupon.status for step in given_back] == steps
    assert [step.kind for step in given_back][-1] is JournalKind.EXTENDED
    assert given_back[-1].coupon.expires_at_ms == midnight_after(30)
    assert given_back[-2].coupon.expires_at_ms == NOW_MS
    assert [step.coupon.balance_minor for step in given_back] == [3_000] * len(steps)


def test_the_days_of_an_extension_are_the_batchs() -> None:
    of = terms(CARD, extend_days=7)
    *_, last = give_back(coupon(), of, amount_minor=1, closes=True, ended_from=None, now_ms=EXPIRES_MS)
    assert last.coupon.expires_at_ms == midnight_after(8)


def test_a_card_that_is_credited_only_stays_expired() -> None:
    of = terms(CARD, expired_card=ExpiredCardPolicy.CREDIT_ONLY)
    assert steps_of(coupon(CouponStatus.EXPIRED), ended_from=CouponStatus.ACTIVATED, of=of) == [
        (JournalKind.REFUNDED, CouponStatus.EXPIRED, 3_000)
    ]
    assert len(steps_of(coupon(), now_ms=EXPIRES_MS, of=of)) == 1


@pytest.mark.parametrize(
    "status", [CouponStatus.ACTIVATED, CouponStatus.USED, CouponStatus.FROZEN, CouponStatus.EXPIRED]
)
def test_a_batch_can_refuse_refunds_to_expired_cards(status: CouponStatus) -> None:
    of = terms(CARD, expired_card=ExpiredCardPolicy.REFUSE)
    with pytest.raises(MeshError) as refused:
        steps_of(coupon(status), now_ms=EXPIRES_MS, ended_from=CouponStatus.ACTIVATED, of=of)
    assert refused.value.reason == "REFUND_CARD_EXPIRED"
    assert refused.value.metadata["expires_at"] == "2026-08-12T02:00:00Z"
    if status is not CouponStatus.EXPIRED:
        assert steps_of(coupon(status), now_ms=EXPIRES_MS - 1, of=of)


def test_a_card_that_was_voided_is_credited_and_stays_void() -> None:
    assert steps_of(coupon(CouponStatus.EXPIRED), ended_from=None) == [
        (JournalKind.REFUNDED, CouponStatus.EXPIRED, 3_000)
    ]


def test_a_single_use_coupon_is_refunded_once_nothing_of_it_is_left() -> None:
    used, of = coupon(CouponStatus.USED), terms(CashVoucher(3_000))
    assert steps_of(used, closes=False, of=of) == [(JournalKind.REFUNDED, CouponStatus.USED, 0)]
    assert steps_of(used, of=of) == [(JournalKind.REFUNDED, CouponStatus.REFUNDED, 0)]
    assert steps_of(used, of=of, now_ms=EXPIRES_MS) == [(JournalKind.REFUNDED, CouponStatus.REFUNDED, 0)]


@pytest.mark.parametrize("status", [status for status in CouponStatus if status is not CouponStatus.USED])
@pytest.mark.parametrize("closes", [True, False])
def test_a_single_use_coupon_that_is_not_used_has_nothing_to_refund(status: CouponStatus, *, closes: bool) -> None:
    with pytest.raises(MeshError) as refused:
        steps_of(coupon(status), closes=closes, of=terms(CashVoucher(3_000)))
    assert refused.value.reason == "STATUS_TRANSITION_REFUSED"


def test_a_replacement_has_the_period_that_the_batch_promises() -> None:
    used, kind = coupon(CouponStatus.USED), CashVoucher(3_000)
    original = terms(kind, used_coupon=UsedCouponPolicy.REISSUE_ORIGINAL_EXPIRY)
    fresh = terms(kind, used_coupon=UsedCouponPolicy.REISSUE_FRESH_EXPIRY, fresh_days=5)
    assert replacement_expiry_ms(used, terms(kind), now_ms=NOW_MS) is None
    assert replacement_expiry_ms(used, original, now_ms=EXPIRES_MS - 1) == EXPIRES_MS
    assert replacement_expiry_ms(used, original, now_ms=EXPIRES_MS) is None
    assert replacement_expiry_ms(used, fresh, now_ms=NOW_MS) == midnight_after(5)
    assert replacement_expiry_ms(used, fresh, now_ms=EXPIRES_MS) == midnight_after(6)


# --- what a batch says ---


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (terms(CARD, used_coupon=UsedCouponPolicy.REISSUE_FRESH_EXPIRY), "refund.used_coupon is not for gift cards"),
        (
            terms(CashVoucher(1), expired_card=ExpiredCardPolicy.REFUSE),
            "refund.expired_card is for gift cards only",
        ),
        (terms(CashVoucher(1), fresh_days=7), "refund.fresh_days needs REISSUE_FRESH_EXPIRY"),
        (
            terms(CARD, expired_card=ExpiredCardPolicy.REFUSE, extend_days=7),
            "refund.extend_days needs CREDIT_AND_EXTEND",
        ),
    ],
)
def test_refund_terms_that_mean_nothing_are_refused(wrong: Terms, problem: str) -> None:
    with pytest.raises(MeshError) as refused:
        check_terms(wrong, now_ms=NOW_MS)
    assert (refused.value.reason, refused.value.metadata) == ("BATCH_TERMS_INVALID", {"problem": problem})


def test_refund_terms_are_the_same_after_they_were_stored() -> None:
    stored = terms(CashVoucher(1), used_coupon=UsedCouponPolicy.REISSUE_FRESH_EXPIRY, fresh_days=7)
    assert Terms.from_json(stored.to_json()) == stored


def test_terms_from_before_there_were_policies_have_the_defaults() -> None:
    older = Terms(CARD, EXPIRES_MS).to_json()
    text = older.replace('"refund":{"expired_card":1,"extend_days":30,"fresh_days":30,"used_coupon":1},', "")
    assert text != older
    assert Terms.from_json(text).refund == RefundTerms()
