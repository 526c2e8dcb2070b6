"""One write transaction in one coupon database: a typed method per query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from coupon_svc.adapters import mysql_rows
from coupon_svc.app.ports import (
    Binding,
    IndexedCode,
    Recorded,
    RequestKey,
    StoredCoupon,
    TransactionRow,
    Unit,
    VersionedUpdate,
)
from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.hold import Hold, HoldState
from coupon_svc.domain.journal import ChainHead, JournalRow
from coupon_svc.domain.routing import id_shard
from coupon_svc.domain.terms import Terms
from coupon_svc.domain.times import month_of, utc_datetime
from meshkit.mysql import Transaction

_OWNED = 1
_FROZEN = 2
_DAY_MS = 86_400_000


class MysqlUnit:
    """Implements `Unit` on a meshkit transaction.

    Attributes:
        tx: The transaction, for adapters whose statements belong into it.
    """

    def __init__(
        self, tx: Transaction, queries: Mapping[str, str], epochs: Mapping[int, int], *, record_retention_days: int
    ) -> None:
        """`epochs` are those under which this process was told that it may write each shard."""
        self.tx = self._tx = tx
        self._queries = queries
        self._epochs = epochs
        self._retention_ms = record_retention_days * _DAY_MS

    async def fence(self, shards: set[int]) -> set[int]:
        """See `Unit.fence`."""
        rows = await self._tx.fetch_all(self._queries["hold_shards"], {"shards": sorted(shards)})
        held = {shard for shard, epoch, state in rows if state == _OWNED and epoch == self._epochs.get(shard)}
        return shards - held

    async def frozen_accounts(self, users: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """See `Unit.frozen_accounts`."""
        if not users:
            return set()
        rows = await self._tx.fetch_all(self._queries["hold_accounts"], {"users": sorted(users)})
        if len(rows) != len(users):
            raise LookupError("account_state lacks the row of a user who owns coupons")
        return {(shard, user_id) for shard, user_id, status in rows if status == _FROZEN}

    async def lock_coupons(self, keys: set[tuple[int, str]]) -> Mapping[str, Coupon]:
        """See `Unit.lock_coupons`."""
        rows = await self._tx.fetch_all(self._queries["lock_coupons"], {"keys": sorted(keys)})
        return {row[0]: mysql_rows.coupon(row) for row in rows}

    async def unreleased_holds(self, keys: set[tuple[int, str]]) -> Sequence[Hold]:
        """See `Unit.unreleased_holds`."""
        return await unreleased_holds(self._tx, self._queries, keys)

    async def lock_stored(self, shard: int, coupon_id: str) -> StoredCoupon | None:
        """See `Unit.lock_stored`."""
        row = await self._tx.fetch_one(self._queries["lock_stored"], {"shard": shard, "coupon_id": coupon_id})
        return None if row is None else mysql_rows.stored_coupon(row)

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """See `Unit.recorded`."""
        return await recorded(self._tx, self._queries, keys)

    async def record(self, records: Sequence[tuple[RequestKey, Recorded]], now_ms: int) -> None:
        """See `Unit.record`."""
        create_time, expire_time = utc_datetime(now_ms), utc_datetime(now_ms + self._retention_ms)
        await self._tx.insert_many(
            self._queries["insert_records"],
            [
                (*key, answer.request_hash, answer.response, create_time, expire_time)
                for key, answer in sorted(records, key=itemgetter(0))
            ],
        )

    async def update_coupons(self, updates: Sequence[VersionedUpdate]) -> None:
        """See `Unit.update_coupons`."""
        matched = await self._tx.execute_rows(
            self._queries["update_coupons"],
            [
                (
                    update.before.shard,
                    update.before.coupon_id,
                    update.before.version,
                    mysql_rows.yuan(update.after.balance_minor),
                    int(update.after.status),
                    update.after.version,
                    update.after.last_hash,
                )
                for update in sorted(updates, key=lambda update: (update.before.shard, update.before.coupon_id))
            ],
        )
        if matched != len(updates):
            raise RuntimeError(f"{len(updates)} locked coupons were to be updated, {matched} had their version")

    async def insert_coupons(self, coupons: Sequence[StoredCoupon]) -> None:
        """See `Unit.insert_coupons`."""
        await self._tx.insert_many(self._queries["insert_coupons"], [*map(mysql_rows.coupon_values, coupons)])

    async def bind_coupon(self, shard: int, coupon_id: str, binding: Binding) -> None:
        """See `Unit.bind_coupon`."""
        bound = await self._tx.execute(
            self._queries["bind_coupon"],
            {
                "shard": shard,
                "coupon_id": coupon_id,
                "user_id": binding.user_id,
                "bound_coupon_id": binding.coupon_id,
                "bound_by": binding.bound_by,
            },
        )
        if bound != 1:
            raise RuntimeError(f"coupon {coupon_id} was locked unbound, but could not be bound")

    async def existing_coupons(self, keys: set[tuple[int, str]]) -> set[str]:
        """See `Unit.existing_coupons`."""
        rows = await self._tx.fetch_all(self._queries["coupon_facts"], {"keys": sorted(keys)})
        return {row[0] for row in rows}

    async def append_journal(self, rows: Sequence[JournalRow]) -> None:
        """See `Unit.append_journal`."""
        ordered = sorted(rows, key=lambda row: (row.shard, row.coupon_id, row.seq))
        await self._tx.insert_many(self._queries["insert_journal"], [*map(mysql_rows.journal_values, ordered)])
        await self._tx.insert_many(
            self._queries["insert_outbox"],
            [
                (row.shard, row.coupon_id, row.seq, month_of(row.origin.time_ms), utc_datetime(row.origin.time_ms))
                for row in ordered
            ],
        )

    async def insert_transactions(self, rows: Sequence[TransactionRow]) -> None:
        """See `Unit.insert_transactions`."""
        await self._tx.insert_many(
            self._queries["insert_transactions"],
            [
                mysql_rows.transaction_values(row)
                for row in sorted(rows, key=lambda row: (row.shard, row.transaction_id))
            ],
        )

    async def index_codes(self, codes: Sequence[IndexedCode]) -> None:
        """See `Unit.index_codes`."""
        ordered = sorted(codes, key=lambda code: (code.shard, code.key_id, code.mac))
        await self._tx.insert_many(
            self._queries["insert_codes"],
            [(code.shard, code.key_id, code.mac, code.coupon_id, code.batch_id, code.made_by) for code in ordered],
        )

    async def note_imported_lengths(self, pairs: set[tuple[int, int]]) -> None:
        """See `Unit.note_imported_lengths`."""
        await self._tx.insert_many(self._queries["note_imported_lengths"], sorted(pairs))

    async def insert_batch(self, batch: Batch, terms: Terms) -> None:
        """See `Unit.insert_batch`."""
        shared = {"batch_id": batch.batch_id, "create_time": utc_datetime(batch.create_time_ms)}
        await self._tx.execute(
            self._queries["insert_terms"],
            {**shared, "shard": id_shard(batch.terms_id), "terms_id": batch.terms_id, "terms": terms.to_json()},
        )
        await self._tx.execute(
            self._queries["insert_batch"],
            {
                **shared,
                "shard": id_shard(batch.batch_id),
                "terms_id": batch.terms_id,
                "name": batch.name,
                "total_quantity": batch.total_quantity,
                "code_length": batch.code_length,
                "uses_per_user": batch.caps.uses_per_user,
                "spend_cap_minor": batch.caps.spend_cap_minor,
                "last_seq": batch.head.seq,
                "last_hash": batch.head.hash,
            },
        )

    async def lock_batch(self, batch_id: str) -> Batch | None:
        """See `Unit.lock_batch`."""
        row = await self._tx.fetch_one(self._queries["lock_batch"], {"shard": id_shard(batch_id), "batch_id": batch_id})
        return None if row is None else mysql_rows.batch(row)

    async def set_block_scope(self, batch_id: str, scope: BlockScope, head: ChainHead) -> None:
        """See `Unit.set_block_scope`."""
        await self._tx.execute(
            self._queries["set_block_scope"],
            {
                "shard": id_shard(batch_id),
                "batch_id": batch_id,
                "block_scope": int(scope),
                "last_seq": head.seq,
                "last_hash": head.hash,
            },
        )

    async def drawn(self, batch_id: str, key: RequestKey) -> tuple[bytes, int] | None:
        """See `Unit.drawn`."""
        row = await self._tx.fetch_one(self._queries["get_draw"], {"batch_id": batch_id, **key._asdict()})
        return None if row is None else (row[0], row[1])

    async def draw(self, batch_id: str, key: RequestKey, request_hash: bytes, quantity: int, now_ms: int) -> None:
        """See `Unit.draw`."""
        named = {"batch_id": batch_id, "quantity": quantity, **key._asdict()}
        await self._tx.execute(
            self._queries["insert_draw"],
            {**named, "request_hash": request_hash, "create_time": utc_datetime(now_ms)},
        )
        await self._tx.execute(self._queries["count_draw"], named)

    async def lease_codes(self, shard: int, code_length: int, quantity: int, limit: int) -> int | None:
        """See `Unit.lease_codes`."""
        key = {"shard": shard, "code_length": code_length}
        await self._tx.execute(self._queries["ensure_counter"], key)
        row = await self._tx.fetch_one(self._queries["lock_counter"], key)
        first: int = row[0] if row else 0
        if first + quantity > limit:
            return None
        await self._tx.execute(self._queries["advance_counter"], {**key, "next_counter": first + quantity})
        return first


async def unreleased_holds(tx: Transaction, queries: Mapping[str, str], keys: set[tuple[int, str]]) -> Sequence[Hold]:
    """Holds of coupons that did not end yet."""
    rows = await tx.fetch_all(
        queries["unreleased_holds"], {"keys": sorted((*key, int(HoldState.HELD)) for key in keys)}
    )
    return [mysql_rows.hold(row) for row in rows]


async def recorded(
    tx: Transaction, queries: Mapping[str, str], keys: Sequence[RequestKey]
) -> dict[RequestKey, Recorded]:
    """Recorded requests among `keys`, as committed now."""
    if not keys:
        return {}
    rows = await tx.fetch_all(queries["recorded_requests"], {"keys": sorted(map(tuple, keys))})
    return {RequestKey(*row[:3]): Recorded(row[3], row[4]) for row in rows}


def transaction_of(unit: Unit) -> Transaction:
    """The transaction behind a unit of `MysqlStore`."""
    if not isinstance(unit, MysqlUnit):
        raise TypeError(f"{type(unit).__name__} is no unit of a MySQL store")
    return unit.tx
