"""An order as coupons see it: what it amounts to, and its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from coupon_svc.domain.money import CURRENCY, positive_minor
from coupon_svc.domain.order_lines import Line


@dataclass(frozen=True)
class Order:
    """What is bought at `merchant_id`. `amount_minor` is the order amount; for a gift card the sum to take.

    Without lines the order is one line about which only the merchant and the amount are known.
    """

    merchant_id: str
    amount_minor: int
    lines: tuple[Line, ...] = ()

    @classmethod
    def of_lines(cls, merchant_id: str, lines: Sequence[Line]) -> Order:
        """The order that these lines make up.

        Raises:
            MeshError: AMOUNT_TOO_LARGE or AMOUNT_ZERO.
        """
        total_minor = sum(line.amount_minor for line in lines)
        return cls(merchant_id, positive_minor(total_minor, CURRENCY, field="lines"), tuple(lines))

    @cached_property
    def parts(self) -> tuple[Line, ...]:
        """The lines, or the one nameless line of an order without any."""
        return self.lines or (Line("", "", "", self.merchant_id, self.amount_minor, 1),)

    @cached_property
    def prices_minor(self) -> tuple[int, ...]:
        """What each part amounts to."""
        return tuple(part.amount_minor for part in self.parts)
