"""Request records go when their retention is over, in chunks, and no earlier."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import ANY

from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.app import purge
from coupon_svc.app.ports import RequestKey
from meshkit.mysql import Databases
from tests.harness.stack import PrivateStack

NOW_MS = 1_700_000_000_000
INSERT = (
    "INSERT INTO request_record (shard, caller, request_id, request_hash, response, create_time, expire_time)"
    " VALUES (%(shard)s, 'purged', %(request_id)s, %(hash)s, '', %(time)s, %(time)s)"
)


async def test_records_are_purged_in_chunks_once_their_retention_is_over(stores: PrivateStack) -> None:
    expired, kept = 2 * purge.CHUNK_ROWS + 1, 3
    chunks: list[int] = []
    async with Databases.open(stores.shard_map("coupon")) as databases:
        store = MysqlStore(databases, timeout_s=10, record_retention_days=1)
        database = databases.of(0)
        async with database.transaction(timeout_s=10) as tx:
            for count, at_ms, name in ((expired, NOW_MS - 1, "gone"), (kept, NOW_MS, "kept")):
                rows = [
                    {"shard": 0, "request_id": f"{name}-{number}", "hash": bytes(32), "time": _time(at_ms)}
                    for number in range(count)
                ]
                await tx.insert_many(INSERT, rows)
        job = purge.PurgeRecords(store, lambda: NOW_MS, every_s=1, observe=chunks.append)
        assert await job.purge(database.name) == expired
        assert chunks == [purge.CHUNK_ROWS, purge.CHUNK_ROWS, 1]
        left = await store.recorded([RequestKey(0, "purged", f"{name}-0") for name in ("gone", "kept")])
    assert left == {RequestKey(0, "purged", "kept-0"): ANY}


def _time(instant_ms: int) -> datetime:
    return datetime.fromtimestamp(instant_ms / 1000, UTC)
