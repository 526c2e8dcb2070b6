"""Reservations in the coupon databases, behind the ports of `reservation_ports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.adapters.mysql_unit import MysqlUnit
from coupon_svc.app.ports import Recorded, RequestKey, TransactionRow, VersionedUpdate
from coupon_svc.app.reservation_ports import ReservationKey, TransactionLine
from coupon_svc.domain.hold import Hold
from coupon_svc.domain.reservation import Reservation
from coupon_svc.domain.times import utc_datetime
from meshkit.leader import EpochFence, Leadership


class MysqlReservationUnit(MysqlUnit):
    """Implements `ReservationUnit`."""

    def __init__(self, *of_unit: Any, fence: EpochFence, **named: Any) -> None:
        """What `MysqlUnit` takes, and the fence of leaders."""
        super().__init__(*of_unit, **named)
        self._fence = fence

    async def hold_leadership(self, leadership: Leadership) -> None:
        """See `ReservationUnit.hold_leadership`."""
        await self._fence.hold(self._tx, leadership)

    async def reservation(self, key: ReservationKey) -> Reservation | None:
        """See `ReservationUnit.reservation`."""
        row = await self._tx.fetch_one(self._queries["get_reservation"], key._asdict())
        return None if row is None else mysql_rows.reservation(row)

    async def owners_of(self, keys: Sequence[ReservationKey]) -> set[tuple[int, int]]:
        """See `ReservationUnit.owners_of`."""
        rows = await self._tx.fetch_all(self._queries["owners_of_reservations"], {"keys": sorted(map(tuple, keys))})
        return {(shard, user_id) for shard, user_id in rows}

    async def lock_reservations(self, keys: Sequence[ReservationKey]) -> Mapping[ReservationKey, Reservation]:
        """See `ReservationUnit.lock_reservations`."""
        if not keys:
            return {}
        rows = await self._tx.fetch_all(self._queries["lock_reservations"], {"keys": sorted(map(tuple, keys))})
        return {ReservationKey(*row[:3]): mysql_rows.reservation(row) for row in rows}

    async def insert_reservation(self, reservation: Reservation) -> None:
        """See `ReservationUnit.insert_reservation`."""
        await self._tx.execute(self._queries["insert_reservation"], mysql_rows.reservation_values(reservation))

    async def update_reservations(self, reservations: Sequence[Reservation]) -> None:
        """See `ReservationUnit.update_reservations`."""
        for reservation in reservations:
            await self._tx.execute(self._queries["update_reservation"], mysql_rows.reservation_values(reservation))

    async def holds_of(self, keys: Sequence[ReservationKey]) -> Sequence[Hold]:
        """See `ReservationUnit.holds_of`."""
        rows = await self._tx.fetch_all(self._queries["holds_of_reservations"], {"keys": sorted(map(tuple, keys))})
        return [mysql_rows.hold(row) for row in rows]

    async def insert_holds(self, holds: Sequence[Hold]) -> None:
        """See `ReservationUnit.insert_holds`."""
        await self._tx.insert_many(self._queries["insert_holds"], [*map(mysql_rows.hold_values, holds)])

    async def update_holds(self, holds: Sequence[Hold]) -> None:
        """See `ReservationUnit.update_holds`."""
        for hold in holds:
            await self._tx.execute(self._queries["update_hold"], mysql_rows.hold_values(hold))

    async def update_held_coupons(self, updates: Sequence[VersionedUpdate]) -> None:
        """See `ReservationUnit.update_held_coupons`."""
        if not updates:
            return
        matched = await self._tx.execute_rows(
            self._queries["update_held_coupons"],
            [
                (
                    update.before.shard,
                    update.before.coupon_id,
                    update.before.version,
                    mysql_rows.yuan(update.after.balance_minor),
                    int(update.after.status),
                    update.after.version,
                    update.after.last_hash,
                    mysql_rows.yuan(update.after.held_minor),
                    update.after.holds,
                    None if update.after.hold_expires_at_ms is None else utc_datetime(update.after.hold_expires_at_ms),
                )
                for update in sorted(updates, key=lambda update: (update.before.shard, update.before.coupon_id))
            ],
        )
        if matched != len(updates):
            raise RuntimeError(f"{len(updates)} locked coupons were to be updated, {matched} had their version")

    async def insert_transaction_lines(self, lines: Sequence[TransactionLine]) -> None:
        """See `ReservationUnit.insert_transaction_lines`."""
        if lines:
            await self._tx.insert_many(
                self._queries["insert_transaction_lines"],
                [
                    (
                        line.shard,
                        line.transaction_id,
                        line.position,
                        line.line_id,
                        line.amount_minor,
                        line.deduction_minor,
                    )
                    for line in lines
                ],
            )

    async def transactions_of(self, key: RequestKey) -> Sequence[TransactionRow]:
        """See `ReservationUnit.transactions_of`."""
        rows = await self._tx.fetch_all(self._queries["transactions_made_by"], key._asdict())
        return [mysql_rows.transaction(row) for row in rows]

    async def given_back_otherwise(self, shard: int, transaction_ids: Sequence[str]) -> set[str]:
        """See `ReservationUnit.given_back_otherwise`."""
        rows = await self._tx.fetch_all(
            self._queries["given_back_of"], {"shard": shard, "transaction_ids": sorted(transaction_ids)}
        )
        return {row[0] for row in rows}

    async def mark_reversed(self, rows: Sequence[TransactionRow]) -> None:
        """See `ReservationUnit.mark_reversed`."""
        for row in rows:
            assert row.reverse_time_ms is not None
            await self._tx.execute(
                self._queries["mark_reversed"],
                {
                    "shard": row.shard,
                    "transaction_id": row.transaction_id,
                    "reverse_time": utc_datetime(row.reverse_time_ms),
                },
            )

    async def replace_record(self, key: RequestKey, recorded: Recorded, now_ms: int) -> None:
        """See `ReservationUnit.replace_record`."""
        await self._tx.execute(
            self._queries["replace_record"],
            {
                **key._asdict(),
                "request_hash": recorded.request_hash,
                "response": recorded.response,
                "create_time": utc_datetime(now_ms),
                "expire_time": utc_datetime(now_ms + self._retention_ms),
            },
        )


class MysqlReservations:
    """Implements `ReservationStore` beside a `MysqlStore`."""

    def __init__(self, store: MysqlStore, *, timeout_s: float) -> None:
        """`timeout_s` bounds what the store itself does not: the beginning of a leader's term."""
        self._store = store
        self._timeout_s = timeout_s
        self._fence = EpochFence()

    @property
    def databases(self) -> Sequence[str]:
        """See `ReservationStore.databases`."""
        return self._store.databases

    def unit(self, shard: int) -> AbstractAsyncContextManager[MysqlReservationUnit]:
        """See `ReservationStore.unit`."""
        return self._store.begin(shard, partial(MysqlReservationUnit, fence=self._fence))

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """See `ReservationStore.recorded`."""
        return await self._store.recorded(keys)

    async def reservation(self, key: ReservationKey) -> Reservation | None:
        """See `ReservationStore.reservation`."""
        database = self._store.database(self._store.database_of(key.shard))
        rows = await self._store.read(database, "get_reservation", key._asdict())
        return mysql_rows.reservation(rows[0]) if rows else None

    async def expired_reservations(self, database: str, now_ms: int, limit: int) -> Sequence[ReservationKey]:
        """See `ReservationStore.expired_reservations`."""
        rows = await self._store.read(
            self._store.database(database), "expired_reservations", {"now": utc_datetime(now_ms), "limit": limit}
        )
        return [ReservationKey(*row) for row in rows]

    async def begin_leadership(self, database: str, leadership: Leadership) -> None:
        """See `ReservationStore.begin_leadership`."""
        await self._fence.claim(self._store.database(database), leadership, timeout_s=self._timeout_s)
