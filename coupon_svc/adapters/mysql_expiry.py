"""Coupons by when they are due, behind the `DueCoupons` port."""

from __future__ import annotations

from collections.abc import Sequence

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_unit import transaction_of
from coupon_svc.app.expiry_ports import Due
from coupon_svc.app.ports import Unit
from coupon_svc.domain.times import utc_datetime
from meshkit.mysql import Databases
from meshkit.queries import load_queries


class MysqlDueCoupons:
    """Implements `DueCoupons`."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each read."""
        self._databases = databases
        self._queries = load_queries("coupon_svc", "sql/expiry.sql")
        self._timeout_s = timeout_s

    async def due(self, shard: int, *, now_ms: int, after: Due | None, limit: int) -> Sequence[Due]:
        """See `DueCoupons.due`."""
        behind = after or Due(0, "", 0)
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            rows = await tx.fetch_all(
                self._queries["due_coupons"],
                {
                    "shard": shard,
                    "after_due": utc_datetime(behind.due_ms),
                    "after_id": behind.coupon_id,
                    "now": utc_datetime(now_ms),
                    "limit": limit,
                },
            )
        return [Due(mysql_rows.instant_ms(row[0]), row[1], row[2]) for row in rows]

    async def still_due(self, unit: Unit, keys: set[tuple[int, str]], *, now_ms: int) -> set[str]:
        """See `DueCoupons.still_due`."""
        rows = await transaction_of(unit).fetch_all(
            self._queries["still_due"], {"keys": sorted(keys), "now": utc_datetime(now_ms)}
        )
        return {row[0] for row in rows}
