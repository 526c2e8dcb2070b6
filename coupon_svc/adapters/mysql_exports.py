"""Exports of codes from the coupon databases, behind the `ExportStore` port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_unit import MysqlUnit
from coupon_svc.app.job_ports import ExportRecord
from coupon_svc.app.ports import StoredCoupon, Unit
from coupon_svc.domain.journal import FIRST_HASH, Sign
from coupon_svc.domain.routing import id_shard
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Database, Databases
from meshkit.queries import load_queries

# A longer list of keys makes a statement that is costly to plan.
_KEYS_AT_ONCE = 500


class MysqlExports:
    """Implements `ExportStore` on meshkit's databases."""

    def __init__(self, databases: Databases, sign: Sign, *, timeout_s: float) -> None:
        """`sign` chains the export journal; `timeout_s` bounds each read."""
        self._databases = databases
        self._sign = sign
        self._queries = {**load_queries("coupon_svc"), **load_queries("coupon_svc", "sql/jobs.sql")}
        self._timeout_s = timeout_s

    async def batch_coupons(self, batch_id: str, after: tuple[int, str] | None, limit: int) -> Sequence[StoredCoupon]:
        """See `ExportStore.batch_coupons`."""
        found: list[StoredCoupon] = []
        databases = self._databases.all
        begin = 0
        if after is not None:
            shard, coupon_id = after
            database = self._databases.of(shard)
            begin = databases.index(database)
            params = {"batch_id": batch_id, "shard": shard, "above": coupon_id, "limit": limit}
            found += await self._stored(database, "batch_coupons_of_shard", params)
        for database in databases[begin:]:
            if len(found) == limit:
                break
            # Of the database of the cursor, the shards up to the cursor's are done.
            done = after[0] if after is not None and database is databases[begin] else -1
            later = [shard for shard in sorted(database.shards) if shard > done]
            if later:
                params = {"batch_id": batch_id, "shards": later, "limit": limit - len(found)}
                found += await self._stored(database, "batch_coupons_of_shards", params)
        return found

    async def coupons_by_id(self, coupon_ids: Sequence[str]) -> Mapping[str, StoredCoupon]:
        """See `ExportStore.coupons_by_id`."""
        keys: defaultdict[Database, list[tuple[int, str]]] = defaultdict(list)
        for coupon_id in coupon_ids:
            shard = id_shard(coupon_id)
            keys[self._databases.of(shard)].append((shard, coupon_id))
        reads = [
            self._stored(database, "get_coupons", {"keys": sorted(of[first : first + _KEYS_AT_ONCE])})
            for database, of in keys.items()
            for first in range(0, len(of), _KEYS_AT_ONCE)
        ]
        return {stored.coupon.coupon_id: stored for each in reads for stored in await each}

    async def record_export(self, unit: Unit, record: ExportRecord) -> None:
        """See `ExportStore.record_export`."""
        if not isinstance(unit, MysqlUnit):
            raise TypeError("an export is recorded in a transaction of the same databases")
        tx, key = unit.transaction, {"shard": id_shard(record.batch_id), "batch_id": record.batch_id}
        last = await tx.fetch_one(self._queries["last_export"], key)
        seq, prev_hash = (1, FIRST_HASH) if last is None else (last[0] + 1, last[1])
        fields: dict[str, Any] = {
            **key,
            "seq": seq,
            "job_id": record.job_id,
            "caller": record.caller,
            "subject": record.subject,
            "ip": record.ip,
            "masked": record.masked,
            "line_count": record.line_count,
            "first_coupon_id": record.first_coupon_id,
            "last_coupon_id": record.last_coupon_id,
            "trace_id": record.trace_id,
        }
        parts = [
            "" if value is None else str(int(value) if isinstance(value, bool) else value) for value in fields.values()
        ]
        parts += [str(record.time_ms), prev_hash.hex()]
        key_id, mac = self._sign("".join(f"{len(part)}:{part}" for part in parts).encode())
        await tx.execute(
            self._queries["insert_export"],
            {
                **fields,
                "event_time": utc_datetime(record.time_ms),
                "key_id": key_id,
                "prev_hash": prev_hash,
                "hash": mac,
            },
        )

    async def _stored(self, database: Database, query: str, params: Mapping[str, object]) -> list[StoredCoupon]:
        async with database.snapshot(timeout_s=self._timeout_s) as tx:
            rows = await tx.fetch_all(self._queries[query], params)
        return [mysql_rows.stored_coupon(row) for row in rows]
