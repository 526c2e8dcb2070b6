"""Forgets request records after their retention, a chunk at a time, so that no delete holds many rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from coupon_svc.app.ports import Clock, Store
from meshkit.mysql_errors import DatabaseError

CHUNK_ROWS = 1_000
# At most this many chunks in one visit, so that a visit ends and leaves room for consumes.
MAX_CHUNKS = 100


class PurgeRecords:
    """Purges the databases now and then; several processes may do so at once."""

    def __init__(self, store: Store, clock: Clock, *, every_s: float, observe: Callable[[int], None]) -> None:
        """`observe` is told how many records a chunk removed."""
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._observe = observe

    async def run(self) -> None:
        """Goes on until cancelled; a database that is away is visited again the next time."""
        while True:
            # Jitter keeps the processes apart; it needs no cryptographic randomness.
            await asyncio.sleep(self._every_s * (0.5 + random.random()))  # noqa: S311
            for database in self._store.databases:
                try:
                    await self.purge(database)
                except DatabaseError:
                    continue

    async def purge(self, database: str) -> int:
        """Removes what expired from one database and returns how many records that were."""
        removed = 0
        for _ in range(MAX_CHUNKS):
            chunk = await self._store.purge_records(database, self._clock(), CHUNK_ROWS)
            removed += chunk
            self._observe(chunk)
            if chunk < CHUNK_ROWS:
                break
        return removed
