"""Recalls behind the `RecallBook` port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_unit import transaction_of
from coupon_svc.app.ports import Unit
from coupon_svc.app.recall_ports import Recall, RecallPart, StatusCount, Unused
from coupon_svc.domain.batch import Batch, Stake
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import ChainHead, Origin
from coupon_svc.domain.routing import id_shard
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Database, Databases
from meshkit.queries import load_queries

# Recalls are rare; what goes beyond this waits for the next visit.
_MAX_RUNNING = 100


class MysqlRecalls:
    """Implements `RecallBook`."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each transaction and each read."""
        self._databases = databases
        self._by_name = {database.name: database for database in databases.all}
        self._queries = load_queries("coupon_svc", "sql/recall.sql")
        self._timeout_s = timeout_s

    async def counts(self, shard: int, batch_id: str, *, now_ms: int) -> Mapping[CouponStatus, StatusCount]:
        """See `RecallBook.counts`."""
        params = {"shard": shard, "batch_id": batch_id, "now": utc_datetime(now_ms)}
        rows = await self._read(self._databases.of(shard), "count_by_status", params)
        return {CouponStatus(row[0]): StatusCount(row[1], int(row[2])) for row in rows}

    async def begin(self, unit: Unit, batch: Batch, recall: Recall, head: ChainHead) -> None:
        """See `RecallBook.begin`."""
        tx = transaction_of(unit)
        key = {"shard": id_shard(batch.batch_id), "batch_id": batch.batch_id}
        begun = await tx.execute(self._queries["recall_batch"], {**key, "last_seq": head.seq, "last_hash": head.hash})
        if begun != 1:
            raise RuntimeError(f"batch {batch.batch_id} was locked, but could not be recalled")
        await tx.execute(
            self._queries["insert_recall"],
            {
                **key,
                "reason": recall.reason,
                "stake_coupons": recall.stake.coupons,
                "stake_minor": recall.stake.money_minor,
                "stake_unbounded": recall.stake.unbounded,
                "caller": recall.origin.caller,
                "request_id": recall.origin.request_id,
                "trace_id": recall.origin.trace_id,
                "start_time": utc_datetime(recall.origin.time_ms),
            },
        )

    async def get(self, batch_id: str) -> Recall | None:
        """See `RecallBook.get`."""
        shard = id_shard(batch_id)
        rows = await self._read(self._databases.of(shard), "get_recall", {"shard": shard, "batch_id": batch_id})
        if not rows:
            return None
        row = rows[0]
        parts = await self.parts(batch_id)
        return Recall(
            batch_id=row[0],
            reason=row[1],
            stake=Stake(row[2], row[3], unbounded=bool(row[4])),
            origin=Origin(caller=row[5], request_id=row[6], trace_id=row[7], time_ms=mysql_rows.instant_ms(row[8])),
            finish_time_ms=_instant_ms(row[9]),
            voided=Stake(
                sum(part.voided_coupons for part in parts),
                sum(part.voided_minor for part in parts),
                unbounded=bool(row[4]),
            ),
        )

    async def running(self, database: str) -> Sequence[str]:
        """See `RecallBook.running`."""
        rows = await self._read(self._by_name[database], "running_recalls", {"limit": _MAX_RUNNING})
        return [row[0] for row in rows]

    async def parts(self, batch_id: str) -> Sequence[RecallPart]:
        """See `RecallBook.parts`."""
        found = await asyncio.gather(
            *(
                self._read(database, "recall_parts", {"keys": [(shard, batch_id) for shard in sorted(database.shards)]})
                for database in self._databases.all
            )
        )
        return [_part(row) for rows in found for row in rows]

    async def add_part(self, part: RecallPart) -> None:
        """See `RecallBook.add_part`."""
        async with self._databases.of(part.shard).transaction(timeout_s=self._timeout_s) as tx:
            await tx.execute(self._queries["add_part"], {"shard": part.shard, "batch_id": part.batch_id})

    async def unused(self, shard: int, batch_id: str, *, after: str, now_ms: int, limit: int) -> Sequence[Unused]:
        """See `RecallBook.unused`."""
        params = {"shard": shard, "batch_id": batch_id, "after": after, "now": utc_datetime(now_ms), "limit": limit}
        return [Unused(*row) for row in await self._read(self._databases.of(shard), "unused_coupons", params)]

    async def lock_part(self, unit: Unit, shard: int, batch_id: str) -> RecallPart:
        """See `RecallBook.lock_part`."""
        row = await transaction_of(unit).fetch_one(self._queries["lock_part"], {"shard": shard, "batch_id": batch_id})
        if row is None:
            raise LookupError(f"recall_part has no row of batch {batch_id} in shard {shard}")
        return _part(row)

    async def still_unused(self, unit: Unit, keys: set[tuple[int, str]], *, now_ms: int) -> set[str]:
        """See `RecallBook.still_unused`."""
        rows = await transaction_of(unit).fetch_all(
            self._queries["still_unused"], {"keys": sorted(keys), "now": utc_datetime(now_ms)}
        )
        return {row[0] for row in rows}

    async def store_part(self, unit: Unit, part: RecallPart) -> None:
        """See `RecallBook.store_part`."""
        await transaction_of(unit).execute(
            self._queries["store_part"],
            {
                "shard": part.shard,
                "batch_id": part.batch_id,
                "after_coupon_id": part.after_coupon_id,
                "voided_coupons": part.voided_coupons,
                "voided_minor": part.voided_minor,
                "begin_time": None if part.begin_ms is None else utc_datetime(part.begin_ms),
                "complete_time": None if part.complete_ms is None else utc_datetime(part.complete_ms),
            },
        )

    async def finish(self, unit: Unit, batch_id: str, now_ms: int) -> None:
        """See `RecallBook.finish`."""
        tx = transaction_of(unit)
        key = {"shard": id_shard(batch_id), "batch_id": batch_id}
        await tx.execute(self._queries["finish_recall"], key)
        await tx.execute(self._queries["end_recall"], {**key, "now": utc_datetime(now_ms)})

    async def _read(self, database: Database, query: str, params: Mapping[str, object]) -> list[tuple[Any, ...]]:
        async with database.snapshot(timeout_s=self._timeout_s) as tx:
            return await tx.fetch_all(self._queries[query], params)


def _instant_ms(moment: datetime | None) -> int | None:
    return None if moment is None else mysql_rows.instant_ms(moment)


def _part(row: Sequence[Any]) -> RecallPart:
    return replace(RecallPart(*row[:5]), begin_ms=_instant_ms(row[5]), complete_ms=_instant_ms(row[6]))
