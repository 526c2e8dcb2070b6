"""When a coupon is expired: absolute ends, days after the claim, and clocks that change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.terms import GiftCard, Terms, check_terms
from coupon_svc.domain.times import NEVER_MS, day_start_ms
from meshkit.errors import MeshError

ZONES = st.sampled_from(
    [
        "Asia/Shanghai",
        "UTC",
        "America/New_York",
        "America/Sao_Paulo",
        "Asia/Beirut",
        "America/Havana",
        "Africa/Cairo",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Asia/Kathmandu",
    ]
)
MOMENTS = st.integers(1_000_000_000_000, 1_900_000_000_000)
DAY = timedelta(days=1)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def local(instant_ms: int, zone: str) -> datetime:
    return datetime.fromtimestamp(instant_ms // 1000, UTC).astimezone(ZoneInfo(zone))


def days(count: int, **others: object) -> Terms:
    return Terms(GiftCard(1), None, days_after_claim=count, **others)  # type: ignore[arg-type]  # by their names


def test_the_example_of_the_contract_holds() -> None:
    assert days(7).expiry_ms(ms("2025-08-11T10:00:00+08:00")) == ms("2025-08-18T16:00:00+00:00")


def test_no_days_after_the_claim_means_the_rest_of_its_day() -> None:
    midnight = ms("2025-08-12T00:00:00+08:00")
    assert days(0).expiry_ms(ms("2025-08-11T00:00:00+08:00")) == midnight
    assert days(0).expiry_ms(midnight - 1) == midnight
    assert days(0).expiry_ms(midnight) == ms("2025-08-13T00:00:00+08:00")


def test_days_are_those_of_the_batchs_zone() -> None:
    claim_ms = ms("2025-08-11T20:00:00+00:00")
    assert days(1).expiry_ms(claim_ms) == ms("2025-08-14T00:00:00+08:00")
    assert days(1, time_zone="UTC").expiry_ms(claim_ms) == ms("2025-08-13T00:00:00+00:00")


def test_the_earlier_of_both_ends_holds() -> None:
    claim_ms, end_ms = ms("2025-08-11T10:00:00+08:00"), ms("2025-08-15T12:00:00+08:00")
    assert Terms(GiftCard(1), end_ms, days_after_claim=2).expiry_ms(claim_ms) == ms("2025-08-14T00:00:00+08:00")
    assert Terms(GiftCard(1), end_ms, days_after_claim=7).expiry_ms(claim_ms) == end_ms


def test_days_count_from_the_start_of_the_period_when_the_claim_comes_before_it() -> None:
    terms = days(2, valid_from_ms=ms("2025-09-01T00:00:00+08:00"))
    assert terms.expiry_ms(ms("2025-08-11T10:00:00+08:00")) == ms("2025-09-04T00:00:00+08:00")


def test_what_nobody_claimed_yet_expires_with_its_batch_or_not_at_all() -> None:
    assert Terms(GiftCard(1), 5, days_after_claim=2).expiry_ms(None) == 5
    assert days(2).expiry_ms(None) == NEVER_MS


@pytest.mark.parametrize(
    ("zone", "claimed", "expired"),
    [
        # Clocks go forward and back in the night: the day has 23 or 25 hours.
        ("America/New_York", "2025-03-08T12:00:00-05:00", "2025-03-10T00:00:00-04:00"),
        ("America/New_York", "2025-11-01T12:00:00-04:00", "2025-11-03T00:00:00-05:00"),
        # The day begins at 01:00, since 00:00 is skipped.
        ("Asia/Beirut", "2025-03-28T12:00:00+02:00", "2025-03-30T01:00:00+03:00"),
        # 00:00 comes twice; the day starts with the first.
        ("America/Havana", "2025-10-31T12:00:00-04:00", "2025-11-02T00:00:00-04:00"),
        # The whole 30 December 2011 was skipped: one day after the 29th is the 31st.
        ("Pacific/Apia", "2011-12-28T12:00:00-10:00", "2011-12-31T00:00:00+14:00"),
    ],
)
def test_a_day_ends_when_the_next_one_starts_also_where_clocks_change(zone: str, claimed: str, expired: str) -> None:
    assert days(1, time_zone=zone).expiry_ms(ms(claimed)) == ms(expired)


@given(MOMENTS, ZONES, st.integers(0, 400))
def test_the_last_second_is_in_the_last_day_and_the_end_is_not(claim_ms: int, zone: str, count: int) -> None:
    end_ms = day_start_ms(claim_ms, zone, count + 1)
    last = local(claim_ms, zone).date() + count * DAY
    assert end_ms > claim_ms
    assert local(end_ms, zone).date() > last
    assert local(end_ms - 1_000, zone).date() <= last


def test_terms_need_an_end_of_one_kind() -> None:
    with pytest.raises(MeshError) as refused:
        check_terms(Terms(GiftCard(1), None), now_ms=0)
    assert refused.value.metadata == {"problem": "expires_at or days_after_claim must be given"}
    check_terms(days(0), now_ms=NEVER_MS)


def test_terms_with_days_are_the_same_after_they_were_stored() -> None:
    assert Terms.from_json(days(7).to_json()) == days(7)


def test_terms_that_were_stored_before_there_were_days_are_read() -> None:
    terms = Terms(GiftCard(1), 5)
    assert Terms.from_json(terms.to_json().replace('"days_after_claim":null,', "")) == terms
