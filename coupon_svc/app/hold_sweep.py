"""Releases holds whose time is over: the leader's work, in bounded batches; what is left is found again.

Nobody waits for it. An expired hold blocks no other order, released or not; releasing it says so in the journal and
brings the figures in the coupon's row up to date.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coupon_svc.app.ports import Clock
from coupon_svc.app.reservation_ports import ReservationKey, ReservationStore
from coupon_svc.app.reservation_steps import release_holds
from coupon_svc.domain.journal import Origin, Sign
from coupon_svc.domain.reservation import ReservationState
from meshkit.leader import Leadership
from meshkit.mysql_errors import DatabaseError

JOB = "hold-sweep"
CALLER = "coupon_svc"
# Reservations in one transaction, and transactions in one visit to a database.
CHUNK = 50
MAX_CHUNKS = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What was released."""

    reservations: int = 0
    holds: int = 0


class HoldSweep:
    """The leader's work."""

    def __init__(
        self, *, store: ReservationStore, sign: Sign, clock: Clock, every_s: float, observe: Callable[[int], None]
    ) -> None:
        """`every_s` is the pause between two visits; `observe` is told how many holds each transaction released."""
        self._store = store
        self._sign = sign
        self._clock = clock
        self._every_s = every_s
        self._observe = observe

    async def run(self, leadership: Leadership) -> None:
        """Goes on until the term ends; a database that is away is visited again the next time.

        Raises:
            LeadershipLost: the term is over, as this process or a database knows.
        """
        claimed: set[str] = set()
        while True:
            for database in self._store.databases:
                try:
                    if database not in claimed:
                        await self._store.begin_leadership(database, leadership)
                        claimed.add(database)
                    await self.visit(database, leadership)
                except DatabaseError as error:
                    _log.warning("hold_sweep_failed", extra={"database": database, "error": type(error).__name__})
            await asyncio.sleep(self._every_s)

    async def visit(self, database: str, leadership: Leadership) -> Swept:
        """Releases what is over in one database, a chunk at a time."""
        total = Swept()
        for _ in range(MAX_CHUNKS):
            expired = await self._store.expired_reservations(database, self._clock(), CHUNK)
            swept = await self.release(expired, leadership) if expired else Swept()
            total = Swept(total.reservations + swept.reservations, total.holds + swept.holds)
            if len(expired) < CHUNK or not swept.reservations:
                break
        return total

    async def release(self, keys: Sequence[ReservationKey], leadership: Leadership) -> Swept:
        """Releases these reservations, all of one database, unless they were confirmed, cancelled or moved since."""
        async with self._store.unit(keys[0].shard) as unit:
            await unit.hold_leadership(leadership)
            moved = await unit.fence({key.shard for key in keys})
            mine = [key for key in keys if key.shard not in moved]
            if not mine:
                return Swept()
            # Releasing what a frozen account holds is no use of it.
            await unit.frozen_accounts(await unit.owners_of(mine))
            now_ms = self._clock()
            ended = [
                reservation.moved(ReservationState.EXPIRED, now_ms)
                for reservation in (await unit.lock_reservations(mine)).values()
                if reservation.state is ReservationState.HELD and reservation.expires_at_ms <= now_ms
            ]
            if not ended:
                return Swept()
            origin = Origin(
                caller=CALLER,
                request_id=f"{JOB}-{leadership.epoch}",
                trace_id=uuid.uuid4().hex,
                time_ms=now_ms,
            )
            holds = await release_holds(unit, ended, origin, self._sign)
        self._observe(holds)
        return Swept(len(ended), holds)
