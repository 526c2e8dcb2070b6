"""The coupon databases behind the `Store` port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_unit import MysqlUnit, recorded, unreleased_holds
from coupon_svc.app.ports import (
    CodeKey,
    CouponFacts,
    IndexedCode,
    Recorded,
    RequestKey,
    StoredCoupon,
    TransactionRow,
)
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.hold import Hold
from coupon_svc.domain.journal import JournalRow
from coupon_svc.domain.routing import id_shard, user_shard
from coupon_svc.domain.terms import Terms
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Database, Databases
from meshkit.queries import load_queries

_FROZEN = 2
# Above every 19-digit id.
_NO_CURSOR = "~"
_QUERY_FILES = ("sql/queries.sql", "sql/reservations.sql")

_Unit = TypeVar("_Unit", bound=MysqlUnit)


class MysqlStore:
    """Implements `Store` on meshkit's databases."""

    def __init__(self, databases: Databases, *, timeout_s: float, record_retention_days: int) -> None:
        """`timeout_s` bounds each transaction and each read."""
        self._databases = databases
        self._queries = {name: sql for path in _QUERY_FILES for name, sql in load_queries("coupon_svc", path).items()}
        self._timeout_s = timeout_s
        self._retention_days = record_retention_days
        self._epochs: dict[int, int] = {}
        self._by_name = {database.name: database for database in databases.all}

    async def learn_epochs(self) -> None:
        """Reads the epochs under which the shard map gave this process its shards: once, before it serves.

        Read any later, the epoch of a move that this process knows nothing about would pass for its own.
        """
        for database in self._databases.all:
            rows = await self.read(database, "hold_shards", {"shards": sorted(database.shards)})
            self._epochs.update({shard: epoch for shard, epoch, _ in rows})

    def database_of(self, shard: int) -> str:
        """See `Store.database_of`."""
        return self._databases.of(shard).name

    @property
    def databases(self) -> Sequence[str]:
        """See `Store.databases`."""
        return tuple(self._by_name)

    def unit(self, shard: int) -> AbstractAsyncContextManager[MysqlUnit]:
        """See `Store.unit`."""
        return self.begin(shard, MysqlUnit)

    @asynccontextmanager
    async def begin(self, shard: int, kind: Callable[..., _Unit]) -> AsyncIterator[_Unit]:
        """A write transaction as a unit of another kind, which takes what `MysqlUnit` takes."""
        async with self._databases.of(shard).transaction(timeout_s=self._timeout_s) as tx:
            yield kind(tx, self._queries, self._epochs, record_retention_days=self._retention_days)

    def database(self, name: str) -> Database:
        """A database by its name."""
        return self._by_name[name]

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """See `Store.recorded`."""
        if not keys:
            return {}
        async with self._databases.of(keys[0].shard).snapshot(timeout_s=self._timeout_s) as tx:
            return await recorded(tx, self._queries, keys)

    async def purge_records(self, database: str, now_ms: int, limit: int) -> int:
        """See `Store.purge_records`."""
        async with self._by_name[database].transaction(timeout_s=self._timeout_s) as tx:
            return await tx.execute(self._queries["purge_records"], {"now": utc_datetime(now_ms), "limit": limit})

    async def ensure_accounts(self, users: set[tuple[int, int]], now_ms: int) -> set[tuple[int, int]]:
        """See `Store.ensure_accounts`."""
        if not users:
            return set()
        database = self._databases.of(next(iter(users))[0])
        rows = await self.read(database, "account_statuses", {"users": sorted(users)})
        missing = users - {(shard, user_id) for shard, user_id, _ in rows}
        if missing:
            async with database.transaction(timeout_s=self._timeout_s) as tx:
                await tx.insert_many(
                    self._queries["insert_accounts"], [(*user, utc_datetime(now_ms)) for user in sorted(missing)]
                )
        return {(shard, user_id) for shard, user_id, status in rows if status == _FROZEN}

    async def find_codes(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, str]:
        """See `Store.find_codes`."""
        return {key: entry.coupon_id for key, entry in (await self.code_makers(keys)).items()}

    async def code_makers(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, IndexedCode]:
        """See `Store.code_makers`."""
        rows = await self.read(self._databases.of(keys[0].shard), "find_codes", {"keys": sorted(map(tuple, keys))})
        return {CodeKey(*row[:3]): mysql_rows.indexed_code(row) for row in rows}

    async def drop_codes(self, keys: Sequence[CodeKey], made_by: bytes) -> None:
        """See `Store.drop_codes`."""
        async with self._databases.of(keys[0].shard).transaction(timeout_s=self._timeout_s) as tx:
            for key in sorted(keys):
                await tx.execute(
                    self._queries["drop_code"],
                    {"shard": key.shard, "key_id": key.key_id, "code_hmac": key.mac, "made_by": made_by},
                )

    async def imported_lengths(self) -> set[int]:
        """See `Store.imported_lengths`."""
        return {row[0] for rows in await self._read_all("imported_lengths", {}) for row in rows}

    async def facts(self, keys: Sequence[tuple[int, str]]) -> Mapping[str, CouponFacts]:
        """See `Store.facts`."""
        rows = await self.read(self._databases.of(keys[0][0]), "coupon_facts", {"keys": sorted(set(keys))})
        return {row[0]: CouponFacts(*row) for row in rows}

    async def get_coupon(self, coupon_id: str) -> StoredCoupon | None:
        """See `Store.get_coupon`."""
        return (await self.get_coupons(id_shard(coupon_id), [coupon_id])).get(coupon_id)

    async def get_coupons(self, shard: int, coupon_ids: Sequence[str]) -> Mapping[str, StoredCoupon]:
        """See `Store.get_coupons`."""
        keys = sorted((shard, coupon_id) for coupon_id in coupon_ids)
        rows = await self.read(self._databases.of(shard), "get_coupons", {"keys": keys})
        return {row[0]: mysql_rows.stored_coupon(row) for row in rows}

    async def unreleased_holds(self, keys: set[tuple[int, str]]) -> Sequence[Hold]:
        """See `Store.unreleased_holds`."""
        shard = next(iter(keys))[0]
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            return await unreleased_holds(tx, self._queries, keys)

    async def list_coupons(
        self, user_id: int, *, status: int | None, below: str | None, limit: int
    ) -> Sequence[StoredCoupon]:
        """See `Store.list_coupons`."""
        shard = user_shard(user_id)
        rows = await self.read(
            self._databases.of(shard),
            "list_coupons",
            {
                "user_id": user_id,
                "statuses": [int(each) for each in CouponStatus] if status is None else [status],
                "shard": shard,
                "below": below or _NO_CURSOR,
                "limit": limit,
            },
        )
        return [mysql_rows.stored_coupon(row) for row in rows]

    async def account_frozen(self, shard: int, user_id: int) -> bool:
        """See `Store.account_frozen`."""
        rows = await self.read(self._databases.of(shard), "account_statuses", {"users": [(shard, user_id)]})
        return any(status == _FROZEN for _, _, status in rows)

    async def get_batch(self, batch_id: str) -> Batch | None:
        """See `Store.get_batch`."""
        row = await self._read_one(id_shard(batch_id), "get_batch", {"batch_id": batch_id})
        return None if row is None else mysql_rows.batch(row)

    async def get_terms(self, terms_id: str) -> Terms | None:
        """See `Store.get_terms`."""
        row = await self._read_one(id_shard(terms_id), "get_terms", {"terms_id": terms_id})
        return None if row is None else Terms.from_json(row[0])

    async def get_transaction(self, transaction_id: str) -> TransactionRow | None:
        """See `Store.get_transaction`."""
        row = await self._read_one(id_shard(transaction_id), "get_transaction", {"transaction_id": transaction_id})
        return None if row is None else mysql_rows.transaction(row)

    async def transaction_of_request(self, caller: str, request_id: str) -> TransactionRow | None:
        """See `Store.transaction_of_request`."""
        return await self._latest_transaction("transactions_of_request", {"caller": caller, "request_id": request_id})

    async def transaction_of_order(self, merchant_id: str, order_id: str) -> TransactionRow | None:
        """See `Store.transaction_of_order`."""
        return await self._latest_transaction(
            "transactions_of_order", {"merchant_id": merchant_id, "order_id": order_id}
        )

    async def journal(self, coupon_id: str, *, above_seq: int, limit: int) -> Sequence[JournalRow]:
        """See `Store.journal`."""
        shard = id_shard(coupon_id)
        rows = await self.read(
            self._databases.of(shard),
            "journal",
            {"shard": shard, "coupon_id": coupon_id, "above_seq": above_seq, "limit": limit},
        )
        return [mysql_rows.journal(row) for row in rows]

    async def _latest_transaction(self, query: str, params: Mapping[str, object]) -> TransactionRow | None:
        found = [mysql_rows.transaction(row) for rows in await self._read_all(query, params) for row in rows]
        return max(found, key=lambda row: (row.consume_time_ms, row.transaction_id), default=None)

    async def read(self, database: Database, query: str, params: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Rows of a named query, as committed now."""
        async with database.snapshot(timeout_s=self._timeout_s) as tx:
            return await tx.fetch_all(self._queries[query], params)

    async def _read_one(self, shard: int, query: str, params: Mapping[str, object]) -> tuple[Any, ...] | None:
        rows = await self.read(self._databases.of(shard), query, {"shard": shard, **params})
        return rows[0] if rows else None

    async def _read_all(self, query: str, params: Mapping[str, object]) -> list[list[tuple[Any, ...]]]:
        return await asyncio.gather(*(self.read(database, query, params) for database in self._databases.all))
