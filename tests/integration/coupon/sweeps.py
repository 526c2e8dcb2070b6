"""Sweeps that a test runs itself, on the real databases, beside the services."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coupon_svc.adapters.mysql_expiry import MysqlDueCoupons
from coupon_svc.adapters.mysql_recall import MysqlRecalls
from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.app.batches import BatchCache
from coupon_svc.app.expiry import ExpirySweep
from coupon_svc.app.recall import RecallSweep
from meshkit.mysql import Databases
from tests.integration.coupon.world import World

_TIMEOUT_S = 5.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Sweeps:
    """One more process' sweeps, without an election."""

    expiry: ExpirySweep
    recall: RecallSweep
    databases: tuple[str, ...]

    async def expire(self) -> int:
        return sum([await self.expiry.run_once(database) for database in self.databases])

    async def void(self) -> int:
        return sum([await self.recall.run_once(database) for database in self.databases])


@asynccontextmanager
async def sweeping(
    world: World, *, observe: Callable[[int], None] = lambda _: None, settle_ms: int = 0
) -> AsyncIterator[Sweeps]:
    """Sweeps of a test's own; `observe` is told the size of each chunk."""
    async with Databases.open(world.stack.shard_map("coupon"), pool_size=4) as databases:
        store = MysqlStore(databases, timeout_s=_TIMEOUT_S, record_retention_days=1)
        await store.learn_epochs()
        yield Sweeps(
            ExpirySweep(
                store, MysqlDueCoupons(databases, timeout_s=_TIMEOUT_S), world.books.sign, now_ms, observe=observe
            ),
            RecallSweep(
                store=store,
                recalls=MysqlRecalls(databases, timeout_s=_TIMEOUT_S),
                batches=BatchCache(store, now_ms),
                sign=world.books.sign,
                clock=now_ms,
                settle_ms=settle_ms,
                observe=observe,
            ),
            tuple(store.databases),
        )
