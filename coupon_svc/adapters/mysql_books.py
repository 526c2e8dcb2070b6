"""The coupon databases as the reconciliation reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coupon_svc.app.books_ports import Pair
from coupon_svc.domain.reconciliation import BookedCoupon, JournalSums
from meshkit.mysql import Databases, Transaction
from meshkit.queries import load_queries

# Above every id.
_END = "~"


class MysqlBookStore:
    """Implements `BookStore` on meshkit's databases."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each chunk."""
        self._databases = databases
        self._queries = load_queries("coupon_svc", "sql/reconcile.sql")
        self._timeout_s = timeout_s
        self._has_holds: dict[str, bool] = {}

    async def chunk(self, shard: int, above: str, limit: int) -> tuple[Sequence[Pair], str | None]:
        """See `BookStore.chunk`."""
        database = self._databases.of(shard)
        async with database.moment(timeout_s=self._timeout_s) as tx:
            ((last,),) = await tx.fetch_all(
                self._queries["range_end"], {"shard": shard, "above": above, "limit": limit}
            )
            # Journals without a coupon may lie behind the last coupon.
            span = {"shard": shard, "above": above, "upto": _END if last is None else last}
            coupons = await self._coupons(tx, database.name, span)
            ends = {row[0]: row[1:] for row in await tx.fetch_all(self._queries["journal_ends"], span)}
            journals = {
                row[0]: JournalSums(row[0], *map(int, row[1:]), *map(int, ends[row[0]]))
                for row in await tx.fetch_all(self._queries["journal_sums"], span)
            }
        ids = sorted(coupons.keys() | journals.keys())
        return [(coupons.get(each), journals.get(each)) for each in ids], last

    async def draws(self, shard: int) -> Mapping[str, tuple[int, int]]:
        """See `BookStore.draws`."""
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            rows = await tx.fetch_all(self._queries["batch_draws"], {"shard": shard})
        return {batch_id: (int(said), int(drawn)) for batch_id, said, drawn in rows}

    async def _coupons(self, tx: Transaction, database: str, span: Mapping[str, Any]) -> dict[str, BookedCoupon]:
        found = {
            row[0]: BookedCoupon(row[0], row[1], row[2], int(row[3]), row[4], bool(row[5]))
            for row in await tx.fetch_all(self._queries["booked_coupons"], span)
        }
        if database not in self._has_holds:
            ((columns,),) = await tx.fetch_all(self._queries["has_holds"])
            self._has_holds[database] = bool(columns)
        if self._has_holds[database]:
            for coupon_id, held_minor, holds, rows_minor, rows in await tx.fetch_all(
                self._queries["booked_holds"], span
            ):
                found[coupon_id] = replace(
                    found[coupon_id],
                    held_minor=int(held_minor),
                    holds=int(holds),
                    hold_rows_minor=int(rows_minor),
                    hold_rows=int(rows),
                )
        return found
