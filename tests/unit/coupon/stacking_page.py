"""The carts of docs/reference/stacking.md, and a calculation written from that page alone: every subset, in fractions.

Nothing here uses the service's own calculation, so that the two can be compared.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/stacking.md"
_CART = re.compile(r"^### Cart (\d+): (.*?)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
LEVELS = ("ITEM", "SHOP", "PLATFORM")


@dataclass(frozen=True)
class PaperLine:
    name: str
    category: str
    price: int


@dataclass(frozen=True)
class PaperCoupon:
    """A coupon as the page writes it; `stands` is its place in the order of expiry."""

    name: str
    stands: int
    kind: str  # "rate", "reduce", "voucher" or "card"
    amount: int = 0
    percent: Fraction = Fraction(0)
    cap: int | None = None
    minimum: int = 0
    level: str = "PLATFORM"
    base: str = "REMAINING"
    group: str = ""
    exclusive: bool = False
    categories: frozenset[str] = frozenset()

    def covers(self, line: PaperLine) -> bool:
        return not self.categories or line.category in self.categories


@dataclass(frozen=True)
class Cart:
    number: int
    title: str
    lines: tuple[PaperLine, ...]
    coupons: tuple[PaperCoupon, ...]
    # By coupon: what it takes of each line, or (reason, coupon in favour of which).
    takes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reasons: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    payable: int = 0


# --- the page ---


def carts() -> Iterator[Cart]:
    for number, title, text in re.findall(
        r"^### Cart (\d+): (.*?)\n(.*?)(?=^### |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    ):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        split = next(at for at, row in enumerate(rows) if row[0] == "coupon")
        lines = tuple(PaperLine(name, category, fen(price)) for name, category, price in rows[2:split])
        coupons, takes, reasons = [], {}, {}
        for stands, row in enumerate(rows[split + 2 :]):
            coupons.append(_coupon(stands, row))
            name, said = row[0], row[6]
            if re.match(r"\d", said):
                total, shares = said.split(": ")
                takes[name] = {line: fen(share) for line, share in (each.split() for each in shares.split(", "))}
                assert sum(takes[name].values()) == fen(total), f"cart {number}, coupon {name}"
            else:
                reason, _, other = said.partition(" by ")
                reasons[name] = (reason, other)
        payable = re.search(r"^To pay: (\S+)$", text, re.MULTILINE)
        assert payable
        yield Cart(int(number), title, lines, tuple(coupons), takes, reasons, fen(payable.group(1)))


def fen(yuan: str) -> int:
    whole, _, part = yuan.partition(".")
    assert len(part) == 2
    return int(whole) * 100 + int(part)


def _coupon(stands: int, row: Sequence[str]) -> PaperCoupon:
    name, kind, level, base, group, categories, _ = row
    found = re.fullmatch(
        r"(?:(?P<percent>\d+) % off(?:, at most (?P<cap>[\d.]+))?|(?P<reduce>[\d.]+) off|voucher (?P<voucher>[\d.]+)"
        r"|gift card (?P<card>[\d.]+))(?:,? from (?P<minimum>[\d.]+))?",
        kind,
    )
    assert found, kind
    said = found.groupdict()
    shared: dict[str, Any] = {
        "name": name,
        "stands": stands,
        "minimum": fen(said["minimum"]) if said["minimum"] else 0,
        "level": level or "PLATFORM",
        "base": base or "REMAINING",
        "group": "" if group == "exclusive" else group,
        "exclusive": group == "exclusive",
        "categories": frozenset(categories.split(", ")) if categories else frozenset(),
    }
    if said["percent"]:
        cap = fen(said["cap"]) if said["cap"] else None
        return PaperCoupon(kind="rate", percent=Fraction(int(said["percent"]), 100), cap=cap, **shared)
    for word in ("reduce", "voucher", "card"):
        if said[word]:
            return PaperCoupon(kind=word, amount=fen(said[word]), **shared)
    raise AssertionError(kind)


# --- the calculation ---

Shares = dict[str, int]


def taken(coupon: PaperCoupon, base: int, left: int) -> int:
    """What one coupon takes, by the page's second section."""
    if base < coupon.minimum:
        return 0
    wanted = coupon.amount
    if coupon.kind == "rate":
        wanted = math.floor(base * coupon.percent + Fraction(1, 2))
        if coupon.cap is not None and wanted > coupon.cap:
            wanted = coupon.cap
    return min(wanted, left)


def spread(amount: int, left: Mapping[str, int]) -> Shares:
    """In proportion to what is left, largest remainders first, of equals the earlier line."""
    whole = sum(left.values())
    exact = {name: Fraction(amount * each, whole) for name, each in left.items()} if whole else {}
    shares = {name: math.floor(each) for name, each in exact.items()}
    names = list(left)
    for name in sorted(exact, key=lambda name: (-(exact[name] - shares[name]), names.index(name))):
        if sum(shares.values()) == amount:
            break
        shares[name] += 1
    return shares


def allowed(chosen: Sequence[PaperCoupon], lines: Sequence[PaperLine]) -> bool:
    """Whether coupons go together, what they take apart."""
    for one, other in itertools.combinations(chosen, 2):
        if one.exclusive or other.exclusive:
            return False
        share_a_line = any(one.covers(line) and other.covers(line) for line in lines)
        if one.level == other.level and one.group == other.group and share_a_line:
            return False
    return True


def apply(chosen: Sequence[PaperCoupon], lines: Sequence[PaperLine]) -> dict[str, Shares] | None:
    """What each coupon of a combination takes of each line; None when the combination is not allowed."""
    if not allowed(chosen, lines):
        return None
    left = {line.name: line.price for line in lines}
    result: dict[str, Shares] = {}
    for level in LEVELS:
        begins = dict(left)
        for coupon in sorted((each for each in chosen if each.level == level), key=lambda each: each.stands):
            own = [line for line in lines if coupon.covers(line)]
            base = sum(line.price if coupon.base == "ORIGINAL" else begins[line.name] for line in own)
            amount = taken(coupon, base, sum(left[line.name] for line in own))
            if amount == 0:
                return None
            result[coupon.name] = spread(amount, {line.name: left[line.name] for line in own})
            for name, share in result[coupon.name].items():
                left[name] -= share
    return result


def total(result: Mapping[str, Shares]) -> int:
    return sum(sum(shares.values()) for shares in result.values())


def most(coupons: Sequence[PaperCoupon], lines: Sequence[PaperLine]) -> int:
    """The most that any combination takes: all of them are tried."""
    plain = [each for each in coupons if each.kind != "card"]
    results = (apply(chosen, lines) for size in range(len(plain) + 1) for chosen in itertools.combinations(plain, size))
    return max(total(result) for result in results if result is not None)
