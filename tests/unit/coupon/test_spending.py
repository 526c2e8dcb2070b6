"""What a coupon takes for an order, for each of the four kinds, at the edges."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.coupon import TRANSITIONS, Coupon, CouponStatus, move
from coupon_svc.domain.money import MAX_AMOUNT_MINOR
from coupon_svc.domain.spending import spend
from coupon_svc.domain.terms import CashVoucher, Discount, GiftCard, Kind, Terms, Threshold, check_terms
from meshkit.errors import MeshError

NOW_MS = 1_800_000_000_000
EXPIRES_MS = NOW_MS + 1_000


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
        version=1,
        last_hash=bytes(32),
    )


def terms(kind: Kind, **others: object) -> Terms:
    return replace(Terms(kind, EXPIRES_MS), **others)  # type: ignore[arg-type]  # each by its field's name


def take(kind: Kind, amount_minor: int, *, balance_minor: int = 0) -> tuple[int, int, CouponStatus]:
    spent = spend(
        coupon(balance_minor=balance_minor), terms(kind), merchant_id="m", amount_minor=amount_minor, now_ms=NOW_MS
    )
    assert spent.deduction_minor + spent.payable_minor == amount_minor
    return spent.deduction_minor, spent.balance_after_minor, spent.coupon.status


def reason_of(
    kind: Kind, amount_minor: int, *, of: Coupon | None = None, now_ms: int = NOW_MS, **others: object
) -> str:
    with pytest.raises(MeshError) as refused:
        spend(of or coupon(), terms(kind, **others), merchant_id="m", amount_minor=amount_minor, now_ms=now_ms)
    return refused.value.reason


def test_a_discount_takes_its_rate_up_to_its_cap() -> None:
    eighty = Discount(8_000, max_deduction_minor=50_000)
    assert take(eighty, 30_000) == (6_000, 0, CouponStatus.USED)
    assert take(eighty, 250_000) == (50_000, 0, CouponStatus.USED)
    assert take(eighty, 250_001) == (50_000, 0, CouponStatus.USED)


def test_a_discount_that_takes_nothing_is_not_used_up() -> None:
    assert reason_of(Discount(9_999), 1) == "COUPON_NO_EFFECT"


def test_a_threshold_is_met_at_equality() -> None:
    kind = Threshold(10_000, 2_000)
    assert take(kind, 10_000) == (2_000, 0, CouponStatus.USED)
    assert reason_of(kind, 9_999) == "BELOW_MIN_AMOUNT"


def test_a_voucher_never_takes_more_than_is_left_to_pay() -> None:
    assert take(CashVoucher(3_000), 1_250) == (1_250, 0, CouponStatus.USED)
    assert take(CashVoucher(3_000), 3_001) == (3_000, 0, CouponStatus.USED)
    assert reason_of(CashVoucher(3_000, min_amount_minor=500), 499) == "BELOW_MIN_AMOUNT"


def test_a_gift_card_stays_activated_until_it_is_empty() -> None:
    assert take(GiftCard(50_000), 15_000, balance_minor=50_000) == (15_000, 35_000, CouponStatus.ACTIVATED)
    assert take(GiftCard(50_000), 35_000, balance_minor=35_000) == (35_000, 0, CouponStatus.USED)


def test_a_gift_card_is_never_overdrawn() -> None:
    card = coupon(balance_minor=100)
    assert reason_of(GiftCard(100), 101, of=card) == "BALANCE_INSUFFICIENT"


@given(st.lists(st.integers(1, 10_000), max_size=60))
def test_whatever_is_spent_from_a_card_is_missing_from_its_balance(amounts: list[int]) -> None:
    card, kind = coupon(balance_minor=100_000), GiftCard(100_000)
    taken = 0
    for amount_minor in amounts:
        try:
            spent = spend(card, terms(kind), merchant_id="m", amount_minor=amount_minor, now_ms=NOW_MS)
        except MeshError as refused:
            assert refused.reason in {"BALANCE_INSUFFICIENT", "COUPON_USED"}  # noqa: PT017 - both are right
            continue
        taken += spent.deduction_minor
        card = spent.coupon
    assert card.balance_minor == 100_000 - taken >= 0


@given(
    st.one_of(
        st.builds(
            Discount,
            st.integers(1, 9_999),
            st.none() | st.integers(1, MAX_AMOUNT_MINOR),
            st.integers(0, MAX_AMOUNT_MINOR),
        ),
        st.builds(Threshold, st.integers(2, MAX_AMOUNT_MINOR), st.integers(1, MAX_AMOUNT_MINOR)),
        st.builds(CashVoucher, st.integers(1, MAX_AMOUNT_MINOR), st.integers(0, MAX_AMOUNT_MINOR)),
    ),
    st.integers(1, MAX_AMOUNT_MINOR),
)
def test_a_deduction_is_positive_and_never_above_the_order(kind: Kind, amount_minor: int) -> None:
    try:
        spent = spend(coupon(), terms(kind), merchant_id="m", amount_minor=amount_minor, now_ms=NOW_MS)
    except MeshError as refused:
        assert refused.reason in {"BELOW_MIN_AMOUNT", "COUPON_NO_EFFECT"}  # noqa: PT017 - both are right
        return
    assert 0 < spent.deduction_minor <= amount_minor
    assert spent.payable_minor == amount_minor - spent.deduction_minor


def test_the_period_begins_at_valid_from_and_ends_before_expires_at() -> None:
    kind = CashVoucher(100)
    assert reason_of(kind, 100, now_ms=EXPIRES_MS) == "COUPON_EXPIRED"
    assert reason_of(kind, 100, valid_from_ms=NOW_MS + 1) == "COUPON_NOT_STARTED"
    last = spend(coupon(), terms(kind, valid_from_ms=NOW_MS), merchant_id="m", amount_minor=100, now_ms=EXPIRES_MS - 1)
    assert last.deduction_minor == 100


def test_a_coupon_is_valid_only_at_the_merchants_of_its_batch() -> None:
    assert reason_of(CashVoucher(100), 100, merchant_ids=frozenset({"n"})) == "MERCHANT_NOT_ELIGIBLE"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CouponStatus.UNACTIVATED, "COUPON_UNACTIVATED"),
        (CouponStatus.USED, "COUPON_USED"),
        (CouponStatus.FROZEN, "COUPON_FROZEN"),
        (CouponStatus.EXPIRED, "COUPON_EXPIRED"),
        (CouponStatus.REFUNDED, "COUPON_REFUNDED"),
    ],
)
def test_each_other_status_is_refused_by_its_own_reason(status: CouponStatus, reason: str) -> None:
    assert reason_of(CashVoucher(100), 100, of=coupon(status)) == reason


@pytest.mark.parametrize("before", CouponStatus)
@pytest.mark.parametrize("after", CouponStatus)
def test_the_state_machine_has_its_steps_and_no_others(before: CouponStatus, after: CouponStatus) -> None:
    if (before, after) in TRANSITIONS:
        assert move(coupon(before), after).status is after
        return
    with pytest.raises(MeshError) as refused:
        move(coupon(before), after)
    assert refused.value.metadata == {"from": before.name, "to": after.name}


def test_the_numbers_of_the_states_are_those_of_the_table() -> None:
    assert {status.name: int(status) for status in CouponStatus} == {
        "UNACTIVATED": 1,
        "USED": 2,
        "ACTIVATED": 3,
        "FROZEN": 4,
        "EXPIRED": 5,
        "REFUNDED": 6,
    }


@pytest.mark.parametrize(
    "kind", [Discount(8_000, 50_000, 100), Threshold(10_000, 2_000), CashVoucher(3_000, 5), GiftCard(50_000)]
)
def test_terms_are_the_same_after_they_were_stored(kind: Kind) -> None:
    stored = terms(kind, valid_from_ms=NOW_MS, merchant_ids=frozenset({"a", "b"}), time_zone="Asia/Urumqi")
    assert Terms.from_json(stored.to_json()) == stored


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (terms(GiftCard(1), expires_at_ms=NOW_MS), "expires_at is in the past"),
        (terms(GiftCard(1), valid_from_ms=EXPIRES_MS), "valid_from must be before expires_at"),
        (terms(GiftCard(1), time_zone="Mars/Olympus"), "time_zone Mars/Olympus is not known"),
        (terms(Threshold(100, 100)), "reduce 1.00 must be below min_amount 1.00"),
    ],
)
def test_terms_that_contradict_themselves_are_refused(wrong: Terms, problem: str) -> None:
    with pytest.raises(MeshError) as refused:
        check_terms(wrong, now_ms=NOW_MS)
    assert (refused.value.reason, refused.value.metadata) == ("BATCH_TERMS_INVALID", {"problem": problem})
