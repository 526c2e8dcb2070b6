"""An order's lines, and how a deduction spreads over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from coupon_svc.domain.money import format_yuan
from meshkit.errors import InvalidFields, MeshError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an order; the price is of one piece, in fen."""

    line_id: str
    sku: str
    category: str
    merchant_id: str
    unit_price_minor: int
    quantity: int

    @property
    def amount_minor(self) -> int:
        """The price of all pieces."""
        return self.unit_price_minor * self.quantity


def check_lines(lines: Sequence[Line], amount_minor: int) -> None:
    """Refuses lines that name one id twice or do not sum to the order amount; no lines are fine.

    Raises:
        MeshError: VALIDATION_FAILED or LINES_AMOUNT_MISMATCH.
    """
    check_names(lines)
    total_minor = sum(line.amount_minor for line in lines)
    if lines and total_minor != amount_minor:
        raise lines_amount_mismatch(total_minor, amount_minor)


def check_names(lines: Sequence[Line]) -> None:
    """Refuses lines that name one id twice.

    Raises:
        InvalidFields: VALIDATION_FAILED.
    """
    if len({line.line_id for line in lines}) != len(lines):
        raise InvalidFields([("lines", "a line_id stands twice")])


def lines_amount_mismatch(lines_minor: int, amount_minor: int) -> MeshError:
    """The refusal of lines that do not sum to the amount."""
    return MeshError("LINES_AMOUNT_MISMATCH", lines=format_yuan(lines_minor), amount=format_yuan(amount_minor))


def lines_to_json(lines: Sequence[Line]) -> str:
    """The stored form."""
    return json.dumps([asdict(line) for line in lines], separators=(",", ":"), ensure_ascii=False)


def lines_from_json(text: str) -> tuple[Line, ...]:
    """Reads what `lines_to_json` wrote."""
    return tuple(Line(**stored) for stored in json.loads(text))


def largest_remainder(total_minor: int, weights: Sequence[int]) -> list[int]:
    """Splits a sum in proportion to weights so that the parts sum to it; ties go to the earlier part.

    A part is never more than its weight when the total is at most the sum of the weights. With all weights zero, so
    must be the total.
    """
    whole = sum(weights)
    if whole == 0:
        if total_minor:
            raise ValueError("a sum cannot be spread over nothing")
        return [0] * len(weights)
    parts = [total_minor * weight // whole for weight in weights]
    remainders = [total_minor * weight % whole for weight in weights]
    # sorted() is stable, so among equal remainders the earlier part comes first.
    for index in sorted(range(len(weights)), key=lambda index: -remainders[index])[: total_minor - sum(parts)]:
        parts[index] += 1
    return parts


def spread(deductions_minor: Sequence[int], lines: Sequence[Line]) -> list[list[int]]:
    """Spreads deductions, one after the other, over what the ones before left of the lines.

    Returns:
        For each deduction its part per line, in the order of the lines; empty lists when there are no lines.
    """
    left = [line.amount_minor for line in lines]
    shares: list[list[int]] = []
    for deduction_minor in deductions_minor:
        share = largest_remainder(deduction_minor, left) if lines else []
        left = [before - part for before, part in zip(left, share, strict=True)] if lines else left
        shares.append(share)
    return shares
