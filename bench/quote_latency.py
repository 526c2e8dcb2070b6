"""Measures how long the best combination of 30 coupons takes, on random carts and on carts made to be hard.

Usage: python -m bench.quote_latency [--carts N] [NAME …]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence

from coupon_svc.domain.order import Order
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.quote import MAX_CONSIDERED, Offer, Quote, quote
from coupon_svc.domain.terms import Base, CashVoucher, Discount, Kind, Level, Stacking, Terms, Threshold

Cart = tuple[Order, list[Offer]]
_EXPIRES_MS = 10
_SHOPS = ("m1", "m2", "m3")


def _order(seeded: random.Random, lines: int, categories: str, *, least: int = 1_000, most: int = 50_000) -> Order:
    return Order.of_lines(
        "m",
        [
            Line(str(at), f"s{at}", seeded.choice(categories), seeded.choice(_SHOPS), seeded.randint(least, most), 1)
            for at in range(lines)
        ],
    )


def _offer(
    number: int, kind: Kind, *, level: int = 3, base: int = 2, group: str | None = None, **scope: frozenset[str]
) -> Offer:
    stacking = Stacking(Level(level), Base(base), f"own {number}" if group is None else group)
    terms = Terms(
        kind,
        _EXPIRES_MS,
        merchant_ids=scope.get("merchant_ids", frozenset()),
        categories=scope.get("categories", frozenset()),
        skus=scope.get("skus", frozenset()),
        stacking=stacking,
    )
    return Offer(f"{number:02d}", terms, 0, _EXPIRES_MS)


def _kind(seeded: random.Random, total: int) -> Kind:
    drawn = seeded.random()
    if drawn < 0.35:
        cap = seeded.choice([None, seeded.randint(500, total // 10 + 500)])
        return Discount(seeded.randint(7_000, 9_800), cap, seeded.choice([0, seeded.randint(1, total)]))
    if drawn < 0.75:
        minimum = seeded.randint(total // 4 + 2, total + 2)
        return Threshold(minimum, max(1, minimum * seeded.randint(3, 20) // 100))
    return CashVoucher(seeded.randint(100, total // 15 + 200), seeded.choice([0, seeded.randint(1, total)]))


def _nested(seeded: random.Random, lines: int, groups: Sequence[str | None]) -> Cart:
    """Items in shops on a platform; a quarter and more of the coupons have minimums on what is left."""
    order = _order(seeded, lines, "abcd")
    offers = []
    for number in range(MAX_CONSIDERED):
        level = seeded.choice([1, 2, 3])
        scope: dict[str, frozenset[str]] = {}
        share = 1
        if level == 1:
            scope, share = {"skus": frozenset([seeded.choice(order.lines).sku])}, lines
        elif level == 2:
            scope, share = {"merchant_ids": frozenset([seeded.choice(_SHOPS)])}, len(_SHOPS)
        kind = _kind(seeded, order.amount_minor // share)
        offers.append(
            _offer(number, kind, level=level, base=seeded.choice([1, 2]), group=seeded.choice(groups), **scope)
        )
    return order, offers


def shops(seeded: random.Random) -> Cart:
    """Items in three shops, most coupons in the default group of their level, some in groups of their own."""
    return _nested(seeded, 10, ["", "", "", "a", "b", None])


def shops_all_stacking(seeded: random.Random) -> Cart:
    """The same, but every coupon stacks with every other."""
    return _nested(seeded, 10, [None])


def shops_hundred_lines(seeded: random.Random) -> Cart:
    """Shops with a hundred lines."""
    return _nested(seeded, 100, ["", "", "a", "b", None])


def whole_order(seeded: random.Random) -> Cart:
    """Every coupon is for the whole order and stacks with every other."""
    order = _order(seeded, 5, "a")
    offers = [
        _offer(number, _kind(seeded, order.amount_minor), level=seeded.choice([1, 2, 3]), base=seeded.choice([1, 2]))
        for number in range(MAX_CONSIDERED)
    ]
    return order, offers


def _crossing(seeded: random.Random, lines: int, groups: Sequence[str | None]) -> Cart:
    order = _order(seeded, lines, "abcdef")
    return order, [
        _offer(
            number,
            _kind(seeded, order.amount_minor // 2),
            level=seeded.choice([1, 2, 3]),
            base=seeded.choice([1, 2]),
            group=seeded.choice(groups),
            categories=frozenset(seeded.sample("abcdef", seeded.randint(1, 4))),
        )
        for number in range(MAX_CONSIDERED)
    ]


def crossing(seeded: random.Random) -> Cart:
    """Coupons for categories that cross each other."""
    return _crossing(seeded, 8, ["", "a", "b", "c", None])


def crossing_all_stacking(seeded: random.Random) -> Cart:
    """The same, but every coupon stacks with every other."""
    return _crossing(seeded, 8, [None])


def crossing_hundred_lines(seeded: random.Random) -> Cart:
    """Coupons for crossing categories, on a hundred lines."""
    return _crossing(seeded, 100, ["", "a", "b", "c", None])


def knapsack(seeded: random.Random) -> Cart:
    """Vouchers of which as many shall be used as leave the minimums of others."""
    order = _order(seeded, 5, "a")
    total = order.amount_minor
    offers = [_offer(number, CashVoucher(seeded.randint(100, total // 25)), level=1) for number in range(20)]
    for number in range(20, MAX_CONSIDERED):
        minimum = total - seeded.randint(total // 20, total // 3)
        offers.append(_offer(number, Threshold(minimum, max(1, total * seeded.randint(2, 15) // 100))))
    return order, offers


def knapsack_with_gap(seeded: random.Random) -> Cart:
    """The same with round amounts, none of which fills the room."""
    order = Order.of_lines("m", [Line("1", "", "", "", 1_000_050, 1)])
    offers = [_offer(number, CashVoucher(100 * seeded.randint(50, 150)), level=1) for number in range(24)]
    for number in range(24, MAX_CONSIDERED):
        minimum = order.amount_minor - 100 * seeded.randint(200, 2_000) - 50
        offers.append(_offer(number, Threshold(minimum, 100 * seeded.randint(100, 500))))
    return order, offers


def staircase(seeded: random.Random) -> Cart:
    """Minimums everywhere, each of which the coupons of lower levels may break."""
    order = _order(seeded, 3, "a", least=50_000, most=60_000)
    total = order.amount_minor
    return order, [
        _offer(
            number,
            Threshold(total * seeded.randint(55, 100) // 100, total * seeded.randint(1, 6) // 100),
            level=1 + number % 3,
        )
        for number in range(MAX_CONSIDERED)
    ]


def vouchers_above_total(seeded: random.Random) -> Cart:
    """Vouchers worth several times the order."""
    order = _order(seeded, 5, "a")
    total = order.amount_minor
    return order, [
        _offer(number, CashVoucher(seeded.randint(total // 12, total // 5)), level=seeded.choice([1, 2, 3]))
        for number in range(MAX_CONSIDERED)
    ]


def alike(seeded: random.Random) -> Cart:
    """Rates that hardly differ, three to a group."""
    order = _order(seeded, 5, "a")
    return order, [
        _offer(
            number,
            Discount(9_000 + seeded.randint(0, 20)),
            level=seeded.choice([1, 2, 3]),
            group=f"g{number % 10}",
        )
        for number in range(MAX_CONSIDERED)
    ]


FAMILIES: Mapping[str, Callable[[random.Random], Cart]] = {
    family.__name__: family
    for family in (
        shops,
        shops_all_stacking,
        shops_hundred_lines,
        whole_order,
        crossing,
        crossing_all_stacking,
        crossing_hundred_lines,
        knapsack,
        knapsack_with_gap,
        staircase,
        vouchers_above_total,
        alike,
    )
}


def cart(name: str, seed: int) -> Cart:
    """The cart of a family that belongs to a seed."""
    return FAMILIES[name](random.Random(seed))  # noqa: S311 - carts shall be the same in every run


def _measure(name: str, carts: int) -> str:
    took_ms: list[float] = []
    quotes: list[Quote] = []
    for seed in range(carts):
        order, offers = cart(name, seed)
        began = time.process_time()
        quotes.append(quote(offers, order))
        took_ms.append((time.process_time() - began) * 1000)
    took_ms.sort()
    nodes = sorted(each.nodes for each in quotes)
    at = {label: int((len(took_ms) - 1) * part) for label, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    times = "  ".join(f"{label} {took_ms[index]:7.2f}" for label, index in at.items())
    unproven = sum(not each.proven for each in quotes)
    return f"{name:24} {times}  max {took_ms[-1]:8.2f} ms  nodes p50 {nodes[at['p50']]:5d} max {nodes[-1]:6d}  " + (
        f"NOT PROVEN {unproven}" if unproven else "all proven"
    )


def main() -> None:
    """Prints one line per family: CPU time per quote, and how many nodes were looked at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carts", type=int, default=200, help="carts of each family")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"families: {', '.join(FAMILIES)}")
    arguments = parser.parse_args()
    for name in arguments.names or FAMILIES:
        print(_measure(name, arguments.carts), flush=True)


if __name__ == "__main__":
    main()
