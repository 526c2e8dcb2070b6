"""What freezing needs of the store beyond `ports`: account rows."""

from __future__ import annotations

from typing import Protocol

from coupon_svc.app.ports import Unit
from coupon_svc.domain.account import Account


class AccountBook(Protocol):
    """Account rows, changed inside a unit. They stand before coupons in the lock order."""

    async def lock(self, unit: Unit, shard: int, user_id: int) -> Account:
        """Locks an existing row against everybody: waits for the writes that hold it, and they for this unit."""

    async def store(self, unit: Unit, account: Account) -> None:
        """Stores a locked account's new state."""
