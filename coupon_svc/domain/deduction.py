"""The one calculation of what a coupon takes, and how that is spread over lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coupon_svc.domain.order_lines import largest_remainder
from coupon_svc.domain.terms import GiftCard, Kind


@dataclass(frozen=True, slots=True)
class Deduction:
    """What is taken, in fen, and each line's share of it, in the order of the lines it was spread over."""

    total_minor: int
    shares_minor: tuple[int, ...]


def taken_minor(kind: Kind, *, base_minor: int, left_minor: int, balance_minor: int = 0) -> int:
    """What a coupon takes, in fen; docs/reference/stacking.md, "What one coupon takes", is the rule.

    Args:
        kind: what the coupon is worth.
        base_minor: the amount at which its minimum and its rate look.
        left_minor: what is left to pay of its eligible lines; never more than this is taken.
        balance_minor: what a gift card may give.
    """
    if isinstance(kind, GiftCard):
        return min(balance_minor, left_minor)
    if base_minor < kind.min_amount_minor:
        return 0
    return min(kind.deduction_minor(base_minor), left_minor)


def deduct(kind: Kind, *, base_minor: int, left_minor: Sequence[int], balance_minor: int = 0) -> Deduction:
    """What a coupon takes from its eligible lines, of which `left_minor` is left to pay, line by line."""
    total = taken_minor(kind, base_minor=base_minor, left_minor=sum(left_minor), balance_minor=balance_minor)
    return Deduction(total, tuple(largest_remainder(total, left_minor)))
