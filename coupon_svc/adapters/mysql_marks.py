"""Activations under way in the coupon databases, behind the `MarkStore` port."""

from __future__ import annotations

from collections.abc import Sequence

from coupon_svc.adapters.mysql_unit import MysqlUnit
from coupon_svc.app.ports import Unit
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Databases, Transaction
from meshkit.queries import load_queries


class MysqlMarks:
    """Implements `MarkStore` on meshkit's databases."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each read."""
        self._queries = load_queries("coupon_svc", "sql/jobs.sql")
        self._timeout_s = timeout_s
        self._by_name = {database.name: database for database in databases.all}

    async def note_mark(self, unit: Unit, shard: int, coupon_id: str, now_ms: int) -> None:
        """See `MarkStore.note_mark`."""
        params = {"shard": shard, "coupon_id": coupon_id, "mark_time": utc_datetime(now_ms)}
        await _transaction(unit).execute(self._queries["insert_mark"], params)

    async def drop_mark(self, unit: Unit, shard: int, coupon_id: str) -> None:
        """See `MarkStore.drop_mark`."""
        await _transaction(unit).execute(self._queries["delete_mark"], {"shard": shard, "coupon_id": coupon_id})

    async def marks(self, database: str, before_ms: int, limit: int) -> Sequence[str]:
        """See `MarkStore.marks`."""
        params = {"before": utc_datetime(before_ms), "limit": limit}
        async with self._by_name[database].snapshot(timeout_s=self._timeout_s) as tx:
            return [coupon_id for (coupon_id,) in await tx.fetch_all(self._queries["old_marks"], params)]


def _transaction(unit: Unit) -> Transaction:
    if not isinstance(unit, MysqlUnit):
        raise TypeError("a mark is written in a transaction of the same databases")
    return unit.transaction
