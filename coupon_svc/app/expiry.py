"""Expires coupons whose period is over, a chunk of one shard at a time.

Whether a coupon can be used never waits for this: each use looks at the clock. The sweep makes the status say so, and
journals it. What is due is what the index of due coupons holds, so a sweep that was cut short goes on where the next
one begins, and two at once do the work once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from coupon_svc.app.expiry_ports import Due, DueCoupons
from coupon_svc.app.ports import Clock, Store
from coupon_svc.app.requests import MAX_RUNS, refuse_moved
from coupon_svc.app.steps import step
from coupon_svc.domain.coupon import end
from coupon_svc.domain.journal import JournalKind, Origin, Sign
from coupon_svc.domain.routing import SHARDS
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, Deadlock

CHUNK_COUPONS = 200
# At most this many chunks of a shard in one visit, so that a flood in one shard doesn't keep the others waiting.
MAX_CHUNKS = 50
CALLER = "coupon_svc"
REQUEST = "expiry-sweep"


class ExpirySweep:
    """The sweep."""

    def __init__(
        self, store: Store, coupons: DueCoupons, sign: Sign, clock: Clock, *, observe: Callable[[int], None]
    ) -> None:
        """`observe` is told how many coupons a chunk expired."""
        self._store = store
        self._coupons = coupons
        self._sign = sign
        self._clock = clock
        self._observe = observe

    async def run_once(self, database: str) -> int:
        """Visits each shard of a database once and returns how many coupons it expired.

        Raises:
            DatabaseError: The database is away; what was committed stays.
        """
        trace_id = uuid.uuid4().hex
        expired = 0
        for shard in range(SHARDS):
            if self._store.database_of(shard) == database:
                expired += await self._sweep(shard, trace_id)
        return expired

    async def _sweep(self, shard: int, trace_id: str) -> int:
        expired = 0
        after: Due | None = None
        for _ in range(MAX_CHUNKS):
            chunk = await self._coupons.due(shard, now_ms=self._clock(), after=after, limit=CHUNK_COUPONS)
            if chunk:
                count = await self._expire(shard, chunk, trace_id)
                self._observe(count)
                expired += count
            if len(chunk) < CHUNK_COUPONS:
                break
            # What was skipped stays due; the cursor keeps it from standing in the way of the rest.
            after = chunk[-1]
        return expired

    async def _expire(self, shard: int, chunk: Sequence[Due], trace_id: str) -> int:
        for _ in range(MAX_RUNS):
            try:
                async with self._store.unit(shard) as unit:
                    await refuse_moved(unit, {shard})
                    # A frozen account's coupons expire as well; its row is held for the lock order alone.
                    await unit.frozen_accounts({(shard, due.user_id) for due in chunk if due.user_id})
                    now_ms = self._clock()
                    keys = {(shard, due.coupon_id) for due in chunk}
                    coupons = await unit.lock_coupons(keys)
                    still_due = await self._coupons.still_due(unit, keys, now_ms=now_ms)
                    origin = Origin(caller=CALLER, request_id=REQUEST, trace_id=trace_id, time_ms=now_ms)
                    steps = [
                        step(coupon, end(coupon), JournalKind.EXPIRED, origin, self._sign)
                        for coupon in coupons.values()
                        if coupon.coupon_id in still_due
                    ]
                    if steps:
                        await unit.update_coupons([update for update, _ in steps])
                        await unit.append_journal([row for _, row in steps])
            except (Deadlock, CommitOutcomeUnknown):
                continue
            except MeshError as moved:
                if moved.reason == "SHARD_MOVED":
                    return 0  # Whoever holds the shard now sweeps it.
                raise
            return len(steps)
        raise Deadlock("expired coupons could not be locked")
