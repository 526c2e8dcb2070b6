"""Refunds behind the `RefundBook` port."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_rows import instant_ms
from coupon_svc.adapters.mysql_unit import transaction_of
from coupon_svc.app.ports import TransactionRow, Unit, VersionedUpdate
from coupon_svc.app.refund_ports import RefundedPart, RefundRow
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.refund import CASH, Cell, GivenBack, PaidLine
from coupon_svc.domain.routing import id_shard
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Database, Databases
from meshkit.queries import load_queries

Rows = Sequence[Sequence[Any]]


class MysqlRefunds:
    """Implements `RefundBook`; what takes a unit runs inside units of `MysqlStore`."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each read of its own."""
        self._databases = databases
        self._timeout_s = timeout_s
        self._queries = load_queries("coupon_svc", "sql/refunds.sql")

    async def transactions_of_order(self, merchant_id: str, order_id: str, *, limit: int) -> Sequence[TransactionRow]:
        """See `RefundBook.transactions_of_order`."""
        params = {"merchant_id": merchant_id, "order_id": order_id, "limit": limit}
        found = await self._read_all("transactions_of_order", params)
        return sorted(map(mysql_rows.transaction, found), key=lambda row: (row.consume_time_ms, row.transaction_id))

    async def locked_transactions_of_order(
        self, unit: Unit, merchant_id: str, order_id: str, *, limit: int
    ) -> Sequence[TransactionRow]:
        """See `RefundBook.locked_transactions_of_order`."""
        params = {"merchant_id": merchant_id, "order_id": order_id, "limit": limit}
        return [*map(mysql_rows.transaction, await self._fetch(unit, "transactions_of_order", params))]

    async def given_back(self, unit: Unit, transaction_ids: Sequence[str]) -> Mapping[str, GivenBack]:
        """See `RefundBook.given_back`."""
        return _given_back(await self._fetch(unit, "given_back", {"transaction_ids": sorted(transaction_ids)}))

    async def paid_lines(self, unit: Unit, keys: Sequence[tuple[int, str]]) -> Mapping[str, Sequence[PaidLine]]:
        """See `RefundBook.paid_lines`."""
        lines: defaultdict[str, list[PaidLine]] = defaultdict(list)
        for transaction_id, *line in await self._fetch(unit, "paid_lines", {"keys": sorted(keys)}):
            lines[transaction_id].append(PaidLine(*line))
        return lines

    async def order_amounts(self, unit: Unit, rows: Sequence[TransactionRow]) -> Mapping[str, int]:
        """See `RefundBook.order_amounts`."""
        keys = {(row.shard, row.caller, row.reservation_id) for row in rows if row.reservation_id}
        if not keys:
            return {}
        found = await self._fetch(unit, "order_amounts", {"keys": sorted(keys)})
        amounts = {(caller, reservation_id): minor for caller, reservation_id, minor in found}
        return {row.transaction_id: amounts[row.caller, row.reservation_id] for row in rows if row.reservation_id}

    async def refunded_lines(self, unit: Unit, transaction_ids: Sequence[str]) -> Mapping[Cell, int]:
        """See `RefundBook.refunded_lines`."""
        rows = await self._fetch(unit, "refunded_lines", {"transaction_ids": sorted(transaction_ids)})
        return {Cell(line_id, tender): minor for line_id, tender, minor in rows}

    async def refunded_cash(self, unit: Unit, shard: int, merchant_id: str, order_id: str) -> Mapping[Cell, int]:
        """See `RefundBook.refunded_cash`."""
        params = {"shard": shard, "merchant_id": merchant_id, "order_id": order_id}
        return {Cell(line_id, CASH): minor for line_id, minor in await self._fetch(unit, "refunded_cash", params)}

    async def ended_by(self, unit: Unit, shard: int, coupon_id: str) -> tuple[JournalKind, int]:
        """See `RefundBook.ended_by`."""
        rows = await self._fetch(unit, "ended_from", {"shard": shard, "coupon_id": coupon_id})
        if not rows:
            raise LookupError(f"coupon {coupon_id} is EXPIRED, but its journal does not say since when")
        return JournalKind(rows[0][0]), rows[0][1]

    async def store_coupons(self, unit: Unit, updates: Sequence[VersionedUpdate]) -> None:
        """See `RefundBook.store_coupons`."""
        if not updates:
            return
        matched = await transaction_of(unit).execute_rows(
            self._queries["store_refunded"],
            [
                (
                    update.before.shard,
                    update.before.coupon_id,
                    update.before.version,
                    mysql_rows.yuan(update.after.balance_minor),
                    int(update.after.status),
                    update.after.version,
                    update.after.last_hash,
                    utc_datetime(update.after.expires_at_ms),
                )
                for update in sorted(updates, key=lambda update: (update.before.shard, update.before.coupon_id))
            ],
        )
        if matched != len(updates):
            raise RuntimeError(f"{len(updates)} locked coupons were to be updated, {matched} had their version")

    async def insert(self, unit: Unit, refund: RefundRow) -> None:
        """See `RefundBook.insert`."""
        tx = transaction_of(unit)
        key = {"shard": refund.shard, "refund_id": refund.refund_id}
        await tx.execute(
            self._queries["insert_refund"],
            {
                **key,
                "merchant_id": refund.merchant_id,
                "order_id": refund.order_id,
                "caller": refund.caller,
                "request_id": refund.request_id,
                "refund_time": utc_datetime(refund.refund_time_ms),
            },
        )
        if refund.coupons:
            await tx.insert_many(
                self._queries["insert_refund_coupons"],
                [
                    {
                        **key,
                        "original_transaction_id": part.original_transaction_id,
                        "coupon_id": part.coupon_id,
                        "amount_minor": part.amount_minor,
                        "replacement_coupon_id": part.replacement_coupon_id,
                    }
                    for part in sorted(refund.coupons, key=lambda part: part.original_transaction_id)
                ],
            )
        await tx.insert_many(
            self._queries["insert_refund_lines"],
            [
                {
                    **key,
                    "position": position,
                    "line_id": cell.line_id,
                    "original_transaction_id": cell.tender,
                    "amount_minor": minor,
                }
                for position, (cell, minor) in enumerate(refund.cells)
            ],
        )

    async def refunded_of(self, transaction: TransactionRow) -> GivenBack:
        """See `RefundBook.refunded_of`."""
        params = {"transaction_ids": [transaction.transaction_id]}
        rows = await self._read(self._databases.of(transaction.shard), "given_back", params)
        return _given_back(rows).get(transaction.transaction_id, GivenBack())

    async def refunds_of(self, transaction: TransactionRow, *, limit: int) -> Sequence[RefundRow]:
        """See `RefundBook.refunds_of`."""
        params = {"transaction_id": transaction.transaction_id, "limit": limit}
        found = await self._read(self._databases.of(transaction.shard), "refunds_of_transaction", params)
        return await self._get(transaction.shard, [refund_id for (refund_id,) in found])

    async def get(self, refund_id: str) -> RefundRow | None:
        """See `RefundBook.get`."""
        found = await self._get(id_shard(refund_id), [refund_id])
        return found[0] if found else None

    async def of_request(self, caller: str, request_id: str) -> RefundRow | None:
        """See `RefundBook.of_request`."""
        found = await self._read_all("refunds_of_request", {"caller": caller, "request_id": request_id})
        return await self.get(max(refund_id for (refund_id,) in found)) if found else None

    async def _get(self, shard: int, refund_ids: Sequence[str]) -> Sequence[RefundRow]:
        if not refund_ids:
            return []
        params = {"keys": [(shard, refund_id) for refund_id in sorted(refund_ids)]}
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            # Refunds never change, so three reads agree.
            heads = await tx.fetch_all(self._queries["get_refunds"], params)
            coupons = await tx.fetch_all(self._queries["get_refund_coupons"], params)
            lines = await tx.fetch_all(self._queries["get_refund_lines"], params)
        return [
            RefundRow(
                shard=head[0],
                refund_id=head[1],
                merchant_id=head[2],
                order_id=head[3],
                caller=head[4],
                request_id=head[5],
                refund_time_ms=instant_ms(head[6]),
                coupons=tuple(RefundedPart(*row[1:]) for row in coupons if row[0] == head[1]),
                cells=tuple((Cell(row[1], row[2]), row[3]) for row in lines if row[0] == head[1]),
            )
            for head in heads
        ]

    async def _fetch(self, unit: Unit, query: str, params: Mapping[str, object]) -> Rows:
        return await transaction_of(unit).fetch_all(self._queries[query], params)

    async def _read(self, database: Database, query: str, params: Mapping[str, object]) -> Rows:
        async with database.snapshot(timeout_s=self._timeout_s) as tx:
            return await tx.fetch_all(self._queries[query], params)

    async def _read_all(self, query: str, params: Mapping[str, object]) -> Rows:
        found = await asyncio.gather(*(self._read(database, query, params) for database in self._databases.all))
        return [row for rows in found for row in rows]


def _given_back(rows: Rows) -> dict[str, GivenBack]:
    sums: dict[str, GivenBack] = {}
    for transaction_id, kind, deduction_minor, order_amount_minor in rows:
        before = sums.get(transaction_id, GivenBack())
        sums[transaction_id] = GivenBack(
            before.deduction_minor + deduction_minor,
            before.order_amount_minor + order_amount_minor,
            before.refunded_minor + (deduction_minor if kind == JournalKind.REFUNDED else 0),
        )
    return sums
