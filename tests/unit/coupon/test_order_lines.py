"""How a deduction spreads over the lines of an order: to the fen, ties to the earlier line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.order_lines import (
    Line,
    check_lines,
    largest_remainder,
    lines_from_json,
    lines_to_json,
    spread,
)
from meshkit.errors import MeshError


def line(line_id: str, unit_price_minor: int, quantity: int = 1) -> Line:
    return Line(line_id, "", "", "", unit_price_minor, quantity)


AMOUNTS = st.lists(st.integers(0, 10**12), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (11, [1, 1, 1], [4, 4, 3]),
        (1, [1, 1, 3], [0, 0, 1]),
        (1, [2, 2], [1, 0]),
        (0, [5, 5], [0, 0]),
        (0, [0, 0], [0, 0]),
        (7, [0, 7], [0, 7]),
        (2_000, [9_999, 10_002, 9_999], [667, 667, 666]),
    ],
)
def test_the_largest_remainders_get_what_rounding_down_left(total: int, weights: list[int], parts: list[int]) -> None:
    assert largest_remainder(total, weights) == parts


@given(AMOUNTS, st.data())
def test_parts_sum_to_the_whole_and_none_is_more_than_its_line(weights: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(weights)))
    parts = largest_remainder(total, weights)
    assert sum(parts) == total
    assert all(0 <= part <= weight for part, weight in zip(parts, weights, strict=True))
    # No part is a whole fen away from its exact share.
    assert all(
        abs(part * sum(weights) - total * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True)
    ) or not sum(weights)


def test_a_sum_cannot_be_spread_over_nothing() -> None:
    with pytest.raises(ValueError, match="over nothing"):
        largest_remainder(1, [0, 0])


@given(AMOUNTS, st.data())
def test_deductions_one_after_the_other_take_a_line_down_to_zero_and_never_below(
    prices: list[int], data: st.DataObject
) -> None:
    left, deductions = sum(prices), []
    for _ in range(4):
        deductions.append(data.draw(st.integers(0, left)))
        left -= deductions[-1]
    deductions.append(left)
    shares = spread(deductions, [line(str(number), price) for number, price in enumerate(prices)])
    assert [sum(share) for share in shares] == deductions
    assert [sum(share[number] for share in shares) for number in range(len(prices))] == prices


def test_without_lines_nothing_is_spread() -> None:
    assert spread([100, 200], []) == [[], []]


@pytest.mark.parametrize(
    ("lines", "amount", "reason"),
    [
        ([line("a", 100), line("a", 100)], 200, "VALIDATION_FAILED"),
        ([line("a", 100, 2)], 199, "LINES_AMOUNT_MISMATCH"),
        ([line("a", 100)], 101, "LINES_AMOUNT_MISMATCH"),
    ],
)
def test_lines_of_one_name_or_another_sum_are_refused(lines: list[Line], amount: int, reason: str) -> None:
    with pytest.raises(MeshError, match=reason):
        check_lines(lines, amount)


def test_no_lines_go_with_every_amount() -> None:
    check_lines([], 123)


@given(st.text(max_size=64), st.text(max_size=64), st.integers(0, 10**12), st.integers(1, 10**6))
def test_lines_come_back_from_their_stored_form(name: str, sku: str, price: int, quantity: int) -> None:
    lines = (Line(name, sku, "", "m", price, quantity),)
    assert lines_from_json(lines_to_json(lines)) == lines
