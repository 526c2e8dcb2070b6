"""What the reconciliation needs from the databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from coupon_svc.domain.reconciliation import BookedCoupon, JournalSums

Pair = tuple[BookedCoupon | None, JournalSums | None]


class BookStore(Protocol):
    """Coupons, journals and draws, as they are committed."""

    async def chunk(self, shard: int, above: str, limit: int) -> tuple[Sequence[Pair], str | None]:
        """The next coupons of a shard with their journals, at one moment; and the id to go on above, None at the end.

        A journal whose coupon is gone comes without one, and the other way round.
        """

    async def draws(self, shard: int) -> Mapping[str, tuple[int, int]]:
        """For each batch of a shard what it says was drawn, and the sum of its draws."""
