"""Amounts are exact: nothing is rounded, truncated or guessed."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.money import (
    MAX_AMOUNT_MINOR,
    discounted_minor,
    format_yuan,
    minor_from_yuan,
    positive_minor,
    rate_e4_from_text,
)
from meshkit.errors import MeshError


@given(st.integers(1, MAX_AMOUNT_MINOR))
def test_every_amount_with_two_decimals_survives_its_way_through_a_json_number(amount_minor: int) -> None:
    assert minor_from_yuan(float(format_yuan(amount_minor))) == amount_minor


@pytest.mark.parametrize(
    ("yuan", "reason"),
    [
        (float("nan"), "AMOUNT_NOT_FINITE"),
        (float("inf"), "AMOUNT_NOT_FINITE"),
        (float("-inf"), "AMOUNT_NOT_FINITE"),
        (0.0, "AMOUNT_ZERO"),
        (-0.0, "AMOUNT_ZERO"),
        (-0.01, "AMOUNT_NEGATIVE"),
        (-1e300, "AMOUNT_NEGATIVE"),
        (1.005, "AMOUNT_PRECISION"),
        (0.001, "AMOUNT_PRECISION"),
        (5e-324, "AMOUNT_PRECISION"),
        (0.1 + 0.2, "AMOUNT_PRECISION"),
        (10_000_000_000.0, "AMOUNT_TOO_LARGE"),
        (1e300, "AMOUNT_TOO_LARGE"),
    ],
)
def test_a_number_that_is_no_amount_is_refused_by_its_own_reason(yuan: float, reason: str) -> None:
    with pytest.raises(MeshError) as refused:
        minor_from_yuan(yuan)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("amount_minor", "currency", "reason"),
    [
        (0, "CNY", "AMOUNT_ZERO"),
        (-1, "CNY", "AMOUNT_NEGATIVE"),
        (MAX_AMOUNT_MINOR + 1, "CNY", "AMOUNT_TOO_LARGE"),
        (1, "USD", "CURRENCY_NOT_SUPPORTED"),
        (1, "", "CURRENCY_NOT_SUPPORTED"),
    ],
)
def test_money_outside_its_range_is_refused_by_its_own_reason(amount_minor: int, currency: str, reason: str) -> None:
    with pytest.raises(MeshError) as refused:
        positive_minor(amount_minor, currency)
    assert refused.value.reason == reason


def test_the_largest_amount_is_accepted() -> None:
    assert positive_minor(MAX_AMOUNT_MINOR, "CNY") == MAX_AMOUNT_MINOR
    assert minor_from_yuan(9_999_999_999.99) == MAX_AMOUNT_MINOR


@given(st.integers(1, MAX_AMOUNT_MINOR), st.integers(1, 9_999))
def test_a_rate_is_rounded_half_up_to_the_fen(amount_minor: int, rate_e4: int) -> None:
    exact = Decimal(amount_minor) * (10_000 - rate_e4) / 10_000
    assert discounted_minor(amount_minor, rate_e4) == int((exact + Decimal("0.5")).to_integral_value("ROUND_FLOOR"))


def test_half_a_fen_is_rounded_up() -> None:
    assert discounted_minor(5, rate_e4_from_text("0.9")) == 1
    assert discounted_minor(4, rate_e4_from_text("0.9")) == 0


@pytest.mark.parametrize("text", ["0", "0.0", "1", "1.0", "1.2", "-0.5", "0.12345", "x", "NaN", "Infinity"])
def test_a_rate_must_lie_between_0_and_1_with_four_decimals(text: str) -> None:
    with pytest.raises(MeshError) as refused:
        rate_e4_from_text(text)
    assert refused.value.reason == "BATCH_TERMS_INVALID"
