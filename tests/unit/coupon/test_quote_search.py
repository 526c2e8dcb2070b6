"""The search for the best combination stays small on carts of thirty coupons, and says when it gave up."""

from __future__ import annotations

import random

import pytest

from bench.quote_latency import FAMILIES, cart
from coupon_svc.domain.quote import MAX_CONSIDERED, Offer, choose, combine, conflict, quote

# Carts of each family; nodes are counted, not milliseconds, so that a busy machine changes nothing.
CARTS = 6
MOST_NODES = {"crossing": 9_000, "crossing_all_stacking": 9_000, "shops_all_stacking": 9_000}


def total(offers: list[Offer], name: str, seed: int) -> int:
    applied = combine(offers, cart(name, seed)[0])
    return -1 if applied is None else sum(each.deduction_minor for each in applied)


@pytest.mark.parametrize("name", FAMILIES)
def test_thirty_coupons_are_searched_to_the_end(name: str) -> None:
    for seed in range(CARTS):
        order, offers = cart(name, seed)
        assert len(offers) == MAX_CONSIDERED
        answer = quote(offers, order)
        assert answer.proven
        assert answer.nodes <= MOST_NODES.get(name, 3_000), (name, seed)
        assert answer.payable_minor + sum(each.deduction_minor for each in answer.coupons) == order.amount_minor
        assert answer.payable_minor >= 0


@pytest.mark.parametrize("name", FAMILIES)
def test_no_combination_near_the_quoted_one_takes_more(name: str) -> None:
    """Thirty coupons are too many to try every combination; those that differ in one or two coupons are tried."""
    for seed in range(2):
        order, offers = cart(name, seed)
        answer = quote(offers, order)
        used = [each.offer for each in answer.coupons]
        best = sum(each.deduction_minor for each in answer.coupons)
        drawn = random.Random(seed)
        for _ in range(60):
            trial = [offer for offer in used if drawn.random() > 0.1]
            for other in drawn.sample(offers, 2):
                if other not in trial and not any(conflict(other, each, order) for each in trial):
                    trial.append(other)
            assert total(trial, name, seed) <= best


def test_a_search_that_ends_early_says_so_and_answers_with_an_allowed_combination() -> None:
    order, offers = cart("crossing", 0)
    whole, cut = quote(offers, order), quote(offers, order, max_nodes=2)
    assert (whole.proven, cut.proven) == (True, False)
    assert combine([each.offer for each in cut.coupons], order) is not None
    assert 0 < sum(each.deduction_minor for each in cut.coupons) <= sum(each.deduction_minor for each in whole.coupons)


def test_of_too_many_coupons_those_that_take_most_alone_are_weighed() -> None:
    order, offers = cart("whole_order", 1)
    _, more = cart("whole_order", 2)
    weighed, passed_over = choose([*offers, *more], order)
    assert len(weighed) == MAX_CONSIDERED
    assert len(passed_over) == len(offers) + len(more) - MAX_CONSIDERED
    assert min(each.alone_minor(order) for each in weighed) >= max(each.alone_minor(order) for each in passed_over)
