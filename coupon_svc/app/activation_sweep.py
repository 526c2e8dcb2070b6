"""Completes activations whose processes died between their steps; any process may do so, and several at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from coupon_svc.app.activate import ActivateCoupon
from coupon_svc.app.job_ports import MarkStore
from coupon_svc.app.ports import Clock, Store
from meshkit.errors import MeshError
from meshkit.mysql_errors import DatabaseError

# Activations that one visit to a database completes at the most.
MAX_PER_VISIT = 100


class ActivationSweep:
    """Looks for activations that are older than one can take."""

    def __init__(
        self,
        *,
        store: Store,
        marks: MarkStore,
        activate: ActivateCoupon,
        clock: Clock,
        every_s: float,
        grace_ms: int,
        observe: Callable[[int], None],
        report: Callable[[str, BaseException], None],
    ) -> None:
        """`grace_ms` is what an activation may take; `observe` counts completed ones, `report` is told of defects."""
        self._store = store
        self._marks = marks
        self._activate = activate
        self._clock = clock
        self._every_s = every_s
        self._grace_ms = grace_ms
        self._observe = observe
        self._report = report

    async def run(self) -> None:
        """Goes on until cancelled; a database that is away is visited again the next time."""
        while True:
            # Jitter keeps the processes apart; it needs no cryptographic randomness.
            await asyncio.sleep(self._every_s * (0.5 + random.random()))  # noqa: S311
            for database in self._store.databases:
                try:
                    await self.sweep(database)
                except DatabaseError:
                    continue

    async def sweep(self, database: str) -> int:
        """Completes what one database holds of old marks and gives how many that were."""
        completed = 0
        for coupon_id in await self._marks.marks(database, self._clock() - self._grace_ms, MAX_PER_VISIT):
            try:
                await self._activate.complete(coupon_id)
            except (DatabaseError, MeshError):
                continue
            except Exception as defect:  # noqa: BLE001 - the boundary of one activation: the others are swept anyway
                self._report(coupon_id, defect)
                continue
            completed += 1
        self._observe(completed)
        return completed
