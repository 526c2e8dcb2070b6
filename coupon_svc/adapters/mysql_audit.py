"""The coupon databases as audits read them, and the roots in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coupon_svc.adapters.mysql_rows import Row, instant_ms
from coupon_svc.app.audit_ports import RowKey, StoredRow
from coupon_svc.domain.audit import Anchor, Head, OutboxEntry, RecordedSpend
from coupon_svc.domain.journal import JournalRow, Origin, account_chain
from coupon_svc.domain.roots import Leaf, Root, SignedRoot
from coupon_svc.domain.routing import user_shard
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Database, Databases, Transaction
from meshkit.mysql_errors import DuplicateKey
from meshkit.queries import load_queries

_OWNED = 1
# Requests that several callers gave the same id; more are of no help in telling what was altered.
_MAX_SPENDS_OF_REQUESTS = 100
_LEAVES_PER_INSERT = 2_000


class MysqlAuditMoment:
    """Implements `AuditMoment` on one reading transaction."""

    def __init__(self, tx: Transaction, queries: Mapping[str, str], shard: int) -> None:
        """`tx` sees one moment."""
        self._tx = tx
        self._queries = queries
        self._shard = shard

    async def coupon_heads(self, above: str, upto: str, limit: int) -> Sequence[Head]:
        """See `AuditMoment.coupon_heads`."""
        rows = await self._read("coupon_heads", above=above, upto=upto, limit=limit)
        return [
            Head(
                shard=self._shard,
                chain_id=row[0],
                # The row that a coupon left behind when it moved to its owner keeps no owner, but a promise.
                user_ids=(row[1],) if row[2] is None else (row[1], row[2]),
                status=row[3],
                balance_minor=int(row[4]),
                version=row[5],
                last_hash=row[6],
            )
            for row in rows
        ]

    async def batch_heads(self, above: str, upto: str) -> Sequence[Head]:
        """See `AuditMoment.batch_heads`."""
        rows = await self._read("batch_heads", above=above, upto=upto)
        # One from before batches had a journal has no row, and the zeros that a first row would be chained to.
        return [Head(self._shard, row[0], row[1], row[2], status=row[3] if row[1] else None) for row in rows]

    async def account_heads(self, user_ids: Sequence[int]) -> Sequence[Head]:
        """See `AuditMoment.account_heads`."""
        if not user_ids:
            return []
        keys = [(self._shard, user_id) for user_id in sorted(user_ids)]
        return [
            Head(self._shard, account_chain(row[0]), row[1], row[2], user_ids=(row[0],), status=row[3])
            for row in await self._read("account_heads", keys=keys)
        ]

    async def rows(self, after: RowKey, upto: str, limit: int) -> Sequence[StoredRow]:
        """See `AuditMoment.rows`."""
        rows = await self._read(
            "audited_rows",
            after_id=after.coupon_id,
            after_seq=after.seq,
            after_month=after.month,
            upto=upto,
            limit=limit,
        )
        return [StoredRow(_as_stored(row), row[25]) for row in rows]

    async def outbox(self, first: RowKey, last: RowKey) -> Mapping[tuple[str, int], OutboxEntry]:
        """See `AuditMoment.outbox`."""
        rows = await self._read(
            "audited_outbox", from_id=first.coupon_id, from_seq=first.seq, to_id=last.coupon_id, to_seq=last.seq
        )
        return {(row[0], row[1]): OutboxEntry(row[2], instant_ms(row[3]), bool(row[4])) for row in rows}

    async def spends(self, transaction_ids: Sequence[str]) -> Sequence[RecordedSpend]:
        """See `AuditMoment.spends`."""
        keys = [(self._shard, transaction_id) for transaction_id in sorted(transaction_ids)]
        return [*map(_spend, await self._read("audited_spends", keys=keys))] if keys else []

    async def spends_of_requests(self, request_ids: Sequence[str]) -> Sequence[RecordedSpend]:
        """See `AuditMoment.spends_of_requests`."""
        if not request_ids:
            return []
        rows = await self._read(
            "audited_spends_of_requests", request_ids=sorted(request_ids), limit=_MAX_SPENDS_OF_REQUESTS
        )
        return [*map(_spend, rows)]

    async def anchors(self, above: str, upto: str) -> Mapping[str, Sequence[Anchor]]:
        """See `AuditMoment.anchors`."""
        found: dict[str, list[Anchor]] = defaultdict(list)
        for coupon_id, seq, row_hash, number in await self._read("anchors", above=above, upto=upto):
            found[coupon_id].append(Anchor(seq, row_hash, number))
        return found

    async def unjournaled(self, above: str, limit: int) -> tuple[Sequence[tuple[str, str]], int, str]:
        """See `AuditMoment.unjournaled`."""
        stored = [(row[0], row[1]) for row in await self._read("transaction_ids", above=above, limit=limit)]
        if not stored:
            return [], 0, ""
        known = await self._read(
            "journaled_transactions",
            coupon_ids=sorted({coupon_id for _, coupon_id in stored}),
            transaction_ids=[transaction_id for transaction_id, _ in stored],
        )
        journaled = {(transaction_id, coupon_id) for coupon_id, transaction_id in known}
        return [each for each in stored if each not in journaled], len(stored), stored[-1][0]

    async def roots(self, above: int, limit: int) -> Sequence[SignedRoot]:
        """See `AuditMoment.roots`."""
        return [_root(self._shard, row) for row in await self._read("roots", above=above, limit=limit)]

    async def root_leaves(self, number: int) -> Sequence[Leaf]:
        """See `AuditMoment.root_leaves`."""
        return [Leaf(*row) for row in await self._read("root_leaves", number=number)]

    async def row_hash(self, coupon_id: str, seq: int) -> bytes | None:
        """See `AuditMoment.row_hash`."""
        rows = await self._read("journal_hash", coupon_id=coupon_id, seq=seq)
        return rows[0][0] if rows else None

    async def _read(self, query: str, **params: object) -> list[tuple[Any, ...]]:
        return await self._tx.fetch_all(self._queries[query], {"shard": self._shard, **params})


class MysqlAuditStore:
    """Implements `AuditStore` and `RootStore` on meshkit's databases."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each read and each transaction, a moment included."""
        self._databases = databases
        self._queries = load_queries("coupon_svc", "sql/audit.sql")
        self._timeout_s = timeout_s
        self._epochs: dict[int, int] = {}

    @property
    def shards(self) -> Sequence[int]:
        """See `RootStore.shards`."""
        return sorted(shard for database in self._databases.all for shard in database.shards)

    @asynccontextmanager
    async def moment(self, shard: int) -> AsyncIterator[MysqlAuditMoment]:
        """See `AuditStore.moment`."""
        async with self._databases.of(shard).moment(timeout_s=self._timeout_s) as tx:
            yield MysqlAuditMoment(tx, self._queries, shard)

    async def coupons_of_user(self, user_id: int, above: str, limit: int) -> Sequence[str]:
        """See `AuditStore.coupons_of_user`."""
        rows = await self._read(user_shard(user_id), "coupons_of_user", user_id=user_id, above=above, limit=limit)
        return [coupon_id for (coupon_id,) in rows]

    async def root_times_ms(self) -> Mapping[int, int]:
        """See `RootStore.root_times_ms`."""
        found: dict[int, int] = {}
        for database in self._databases.all:
            async with database.snapshot(timeout_s=self._timeout_s) as tx:
                rows = await tx.fetch_all(self._queries["root_times"])
            found.update({shard: instant_ms(moment) for shard, moment in rows if shard in database.shards})
        return found

    async def last_root(self, shard: int) -> SignedRoot | None:
        """See `RootStore.last_root`."""
        rows = await self._read(shard, "last_root")
        return _root(shard, rows[0]) if rows else None

    async def roots(self, shard: int, above: int, limit: int) -> Sequence[SignedRoot]:
        """See `RootStore.roots`."""
        return [_root(shard, row) for row in await self._read(shard, "roots", above=above, limit=limit)]

    async def leaves(self, shard: int, number: int) -> Sequence[Leaf]:
        """See `RootStore.leaves`."""
        return [Leaf(*row) for row in await self._read(shard, "root_leaves", number=number)]

    async def unanchored(self, shard: int, above: str, limit: int) -> tuple[Sequence[Leaf], str]:
        """See `RootStore.unanchored`."""
        ((upto,),) = await self._read(shard, "heads_until", above=above, limit=limit)
        if upto is None:
            return [], ""
        rows = await self._read(shard, "unanchored_heads", above=above, upto=upto)
        return [Leaf(*row) for row in rows], upto

    async def add_root(self, signed: SignedRoot, leaves: Sequence[Leaf]) -> bool:
        """See `RootStore.add_root`."""
        root = signed.root
        database = self._databases.of(root.shard)
        epoch = await self._epoch(database, root.shard)
        try:
            async with database.transaction(timeout_s=self._timeout_s) as tx:
                if await tx.fetch_one(self._queries["hold_owner"], {"shard": root.shard}) != (epoch, _OWNED):
                    return False
                await tx.execute(
                    self._queries["insert_root"],
                    {
                        "shard": root.shard,
                        "number": root.number,
                        "root_time": utc_datetime(root.time_ms),
                        "leaf_count": root.leaf_count,
                        "merkle_root": root.merkle_root,
                        "previous": root.previous,
                        "key_id": signed.key_id,
                        "signature": signed.signature,
                    },
                )
                rows = [(root.shard, leaf.coupon_id, leaf.seq, leaf.hash, root.number) for leaf in leaves]
                for first in range(0, len(rows), _LEAVES_PER_INSERT):
                    await tx.insert_many(self._queries["insert_leaves"], rows[first : first + _LEAVES_PER_INSERT])
        except DuplicateKey:
            return False
        return True

    async def _epoch(self, database: Database, shard: int) -> int:
        """The epoch under which the shard map gave this process the shard, as first seen."""
        if shard not in self._epochs:
            async with database.snapshot(timeout_s=self._timeout_s) as tx:
                row = await tx.fetch_one(self._queries["hold_owner"], {"shard": shard})
            self._epochs[shard] = row[0] if row else 0
        return self._epochs[shard]

    async def _read(self, shard: int, query: str, **params: object) -> list[tuple[Any, ...]]:
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            return await tx.fetch_all(self._queries[query], {"shard": shard, **params})


def _as_stored(row: Row) -> JournalRow:
    """From audited_rows; other than `mysql_rows.journal` it takes numbers that the service would never write."""
    return JournalRow(
        shard=row[0],
        coupon_id=row[1],
        seq=row[2],
        kind=row[3],
        status_before=row[4],
        status_after=row[5],
        user_id=row[6],
        merchant_id=row[7],
        order_id=row[8],
        amount_minor=row[9],
        order_amount_minor=row[10],
        deduction_minor=row[11],
        balance_after_minor=row[12],
        transaction_id=row[13],
        original_transaction_id=row[14],
        settlement_held=row[15],
        lock_fence=row[16],
        origin=Origin(caller=row[17], request_id=row[18], trace_id=row[19], time_ms=instant_ms(row[20])),
        key_id=row[21],
        prev_hash=row[22],
        hash=row[23],
        reason=row[24],
    )


def _spend(row: Row) -> RecordedSpend:
    return RecordedSpend(*(*row[:-1], instant_ms(row[-1])))


def _root(shard: int, row: Row) -> SignedRoot:
    root = Root(
        shard=shard,
        number=row[0],
        time_ms=instant_ms(row[1]),
        leaf_count=row[2],
        merkle_root=row[3],
        previous=row[4],
    )
    return SignedRoot(root, row[5], row[6])
