"""What the sweep of expired coupons needs of the store beyond `ports`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from coupon_svc.app.ports import Unit


class Due(NamedTuple):
    """A coupon whose period is over, in the order in which they are swept."""

    due_ms: int
    coupon_id: str
    user_id: int


class DueCoupons(Protocol):
    """Coupons by when they are to be expired."""

    async def due(self, shard: int, *, now_ms: int, after: Due | None, limit: int) -> Sequence[Due]:
        """Due coupons of a shard behind `after`, oldest first, without locks."""

    async def still_due(self, unit: Unit, keys: set[tuple[int, str]], *, now_ms: int) -> set[str]:
        """Which of the locked (shard, coupon_id) are due."""
