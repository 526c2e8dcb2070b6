"""What reservations hold, what is left for others, and which steps there are, at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.hold import Hold, HoldState, counted, recounted
from coupon_svc.domain.reservation import (
    MAX_HOLDS,
    RESERVATION_STEPS,
    Planned,
    Reservation,
    ReservationState,
    Wanted,
    confirmed_amounts,
    given_back,
    plan,
    take_held,
)
from coupon_svc.domain.spending import spend
from coupon_svc.domain.terms import CashVoucher, Discount, GiftCard, Terms, Threshold
from meshkit.errors import InvalidFields, MeshError
from tests.unit.coupon.test_spending import EXPIRES_MS, NOW_MS, coupon

CARD, VOUCHER = Terms(GiftCard(10_000), EXPIRES_MS), Terms(CashVoucher(500), EXPIRES_MS)


def hold(
    amount_minor: int = 3_000, *, ends_in_ms: int = 1_000, is_card: bool = True, state: HoldState = HoldState.HELD
) -> Hold:
    return Hold(
        shard=42,
        caller="till",
        reservation_id=f"r-{amount_minor}-{ends_in_ms}",
        position=0,
        coupon_id=coupon().coupon_id,
        state=state,
        base_minor=10_000,
        deduction_minor=amount_minor,
        held_minor=amount_minor if is_card else 0,
        expires_at_ms=NOW_MS + ends_in_ms,
    )


def card(balance_minor: int = 10_000, status: CouponStatus = CouponStatus.ACTIVATED) -> Coupon:
    return coupon(status, balance_minor)


def reservation(state: ReservationState = ReservationState.HELD) -> Reservation:
    return Reservation(
        shard=42,
        caller="till",
        reservation_id="r",
        state=state,
        user_id=42,
        merchant_id="m",
        order_id="o",
        amount_minor=10_000,
        lines=(),
        settlement_held=False,
        reserve_hash=b"h" * 32,
        expires_at_ms=NOW_MS + 1_000,
        create_time_ms=NOW_MS,
        update_time_ms=NOW_MS,
    )


def reason_of(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(MeshError) as refused:
        call(*arguments, **named)  # type: ignore[operator]  # a function of the domain
    return refused.value.reason


# --- counting ---


def test_only_live_holds_of_the_coupon_count_for_others() -> None:
    other = replace(hold(500), coupon_id="0000000000000000099")
    holds = [hold(3_000), hold(2_000, ends_in_ms=0), hold(1_000, ends_in_ms=1), other]
    seen = counted(card(), holds, NOW_MS)
    assert (seen.held_minor, seen.holds, seen.available_minor) == (4_000, 2, 6_000)
    assert seen.hold_expires_at_ms == NOW_MS + 1


def test_the_stored_figures_count_all_holds_that_were_not_released() -> None:
    seen = recounted(card(), [hold(3_000), hold(2_000, ends_in_ms=-5)])
    assert (seen.held_minor, seen.holds) == (5_000, 2)
    assert seen.has_stale_hold(NOW_MS)
    assert not recounted(card(), [hold(3_000)]).has_stale_hold(NOW_MS)
    assert recounted(seen, []) == card()


def test_a_held_sum_is_not_there_for_others_and_a_held_coupon_not_at_all() -> None:
    held = counted(card(), [hold(3_000)], NOW_MS)
    assert spend(held, CARD, merchant_id="m", amount_minor=7_000, now_ms=NOW_MS).balance_after_minor == 3_000
    with pytest.raises(MeshError) as refused:
        spend(held, CARD, merchant_id="m", amount_minor=7_001, now_ms=NOW_MS)
    assert (refused.value.reason, refused.value.metadata["balance"]) == ("BALANCE_INSUFFICIENT", "70.00")
    voucher = counted(coupon(), [hold(500, is_card=False)], NOW_MS)
    assert reason_of(spend, voucher, VOUCHER, merchant_id="m", amount_minor=900, now_ms=NOW_MS) == "COUPON_HELD"


# --- planning ---


def planned(*wanted: tuple[Terms, int | None], amount_minor: int, holds: int = 0) -> list[Planned]:
    coupons, terms, asked = {}, {}, []
    for number, (each, asks) in enumerate(wanted):
        one = replace(card(), coupon_id=f"{number:019d}", terms_id=str(number), holds=holds)
        coupons[one.coupon_id], terms[str(number)] = one, each
        asked.append(Wanted(one.coupon_id, asks))
    return plan(asked, coupons, terms, merchant_id="m", amount_minor=amount_minor, now_ms=NOW_MS)


def test_each_coupon_takes_from_what_the_ones_before_left_to_pay() -> None:
    reduction, rebate = Terms(Threshold(10_000, 2_000), EXPIRES_MS), Terms(Discount(9_000), EXPIRES_MS)
    found = planned((reduction, None), (rebate, None), (CARD, 5_000), (CARD, None), amount_minor=15_000)
    assert [(each.base_minor, each.deduction_minor, each.held_minor) for each in found] == [
        (15_000, 2_000, 0),
        (13_000, 1_300, 0),
        (11_700, 5_000, 5_000),
        (6_700, 6_700, 6_700),
    ]


def test_a_minimum_looks_at_what_is_left_to_pay() -> None:
    reduction = Terms(Threshold(10_000, 2_000), EXPIRES_MS)
    with pytest.raises(MeshError, match="BELOW_MIN_AMOUNT"):
        planned((VOUCHER, None), (reduction, None), amount_minor=10_000)


def test_a_sum_that_does_not_belong_there_is_refused() -> None:
    with pytest.raises(InvalidFields):
        planned((VOUCHER, 100), amount_minor=1_000)
    with pytest.raises(InvalidFields):
        planned((CARD, 1_001), amount_minor=1_000)
    with pytest.raises(MeshError, match="COUPON_NO_EFFECT"):
        planned((CARD, 1_000), (VOUCHER, None), amount_minor=1_000)


def test_a_card_of_too_many_holds_takes_no_more() -> None:
    with pytest.raises(MeshError, match="COUPON_HELD"):
        planned((CARD, 1), amount_minor=1, holds=MAX_HOLDS)


# --- confirming ---


def test_nothing_named_means_all_of_it_and_a_card_may_be_taken_in_part() -> None:
    one, two = hold(3_000), replace(hold(500, is_card=False), coupon_id="0000000000000000099", position=1)
    assert confirmed_amounts(reservation(), [one, two], []) == {one.coupon_id: 3_000, two.coupon_id: 500}
    wanted = [Wanted(one.coupon_id, 2_999)]
    assert confirmed_amounts(reservation(), [one, two], wanted) == {one.coupon_id: 2_999}
    for bad in (
        [Wanted(one.coupon_id, 3_001)],
        [Wanted("0000000000000000098", None)],
    ):
        assert reason_of(confirmed_amounts, reservation(), [one, two], bad) == "CONFIRM_EXCEEDS_HOLD"
    for bad in ([Wanted(two.coupon_id, 499)], [Wanted(one.coupon_id, 1), Wanted(one.coupon_id, 1)]):
        assert reason_of(confirmed_amounts, reservation(), [one, two], bad) == "VALIDATION_FAILED"


def taken(of: Coupon, which: Hold, amount_minor: int, now_ms: int = NOW_MS) -> Coupon:
    return take_held(of, which, amount_minor, now_ms=now_ms)


def test_a_card_is_used_up_when_nothing_is_left_and_any_other_coupon_at_once() -> None:
    assert taken(card(), hold(10_000), 9_999).balance_minor == 1
    assert taken(card(), hold(10_000), 10_000).status is CouponStatus.USED
    assert taken(coupon(), hold(500, is_card=False), 500).status is CouponStatus.USED


def test_a_live_hold_outlasts_the_coupons_own_period_and_an_ended_one_does_not() -> None:
    live, ended = hold(100, ends_in_ms=EXPIRES_MS - NOW_MS + 10), hold(100, ends_in_ms=0)
    assert taken(card(), live, 100, EXPIRES_MS).balance_minor == 9_900
    assert reason_of(taken, card(), ended, 100, EXPIRES_MS) == "HOLD_EXPIRED"
    assert taken(card(), ended, 100).balance_minor == 9_900


@pytest.mark.parametrize("ends_in_ms", [0, 1_000])
def test_what_somebody_else_took_meanwhile_is_gone_whatever_the_clocks_say(ends_in_ms: int) -> None:
    which = hold(5_000, ends_in_ms=ends_in_ms)
    assert reason_of(taken, card(4_999), which, 5_000) == "HOLD_EXPIRED"
    assert reason_of(taken, replace(card(), held_minor=5_001, holds=1), which, 5_000) == "HOLD_EXPIRED"
    assert reason_of(taken, card(0, CouponStatus.USED), which, 5_000) == "HOLD_EXPIRED"
    undivided = hold(500, is_card=False, ends_in_ms=ends_in_ms)
    assert reason_of(taken, coupon(CouponStatus.USED), undivided, 500) == "HOLD_EXPIRED"
    assert reason_of(taken, replace(coupon(), holds=1), undivided, 500) == "HOLD_EXPIRED"
    assert reason_of(taken, coupon(CouponStatus.FROZEN), undivided, 500) == "COUPON_FROZEN"


# --- steps ---


@pytest.mark.parametrize("before", ReservationState)
@pytest.mark.parametrize("after", ReservationState)
def test_a_reservation_takes_the_steps_of_its_table_and_no_other(
    before: ReservationState, after: ReservationState
) -> None:
    if (before, after) in RESERVATION_STEPS:
        moved = reservation(before).moved(after, NOW_MS + 5)
        assert (moved.state, moved.update_time_ms) == (after, NOW_MS + 5)
    else:
        with pytest.raises(MeshError):
            reservation(before).moved(after, NOW_MS)


def test_a_reversal_gives_back_what_was_taken_and_leaves_frozen_and_expired_cards_what_they_are() -> None:
    emptied = given_back(card(0, CouponStatus.USED), CARD, 10_000)
    assert (emptied.status, emptied.balance_minor) == (CouponStatus.ACTIVATED, 10_000)
    for status in (CouponStatus.ACTIVATED, CouponStatus.FROZEN, CouponStatus.EXPIRED):
        assert given_back(card(1, status), CARD, 99) == card(100, status)
    assert given_back(coupon(CouponStatus.USED), VOUCHER, 500).status is CouponStatus.ACTIVATED
    assert reason_of(given_back, coupon(CouponStatus.REFUNDED), VOUCHER, 500) == "STATUS_TRANSITION_REFUSED"
