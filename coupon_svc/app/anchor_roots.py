"""Makes signed roots of the heads of each shard's chains, and exports them out of the databases.

A root is over the heads that changed since the root before, and names that root; so each root vouches for all that was
written until then, and costs no more than what changed. Who leads only saves work: the numbers are unique.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from coupon_svc.app.audit_ports import BELOW_ALL, RootArchive, RootStore, SignRoot
from coupon_svc.app.ports import Clock
from coupon_svc.domain.roots import Leaf, Root, SignedRoot
from meshkit.leader import Leadership
from meshkit.mysql_errors import DatabaseError

JOB = "coupon-roots"
HEADS_PER_READ = 5_000
# A root is written in one transaction; what is beyond goes into the next root at once.
LEAVES_PER_ROOT = 20_000
ROOTS_PER_EXPORT = 100
# A visit's part of the time between two roots of a shard.
VISITS_PER_ROOT = 12


class AnchorRoots:
    """The use case."""

    def __init__(
        self,
        store: RootStore,
        sign: SignRoot,
        clock: Clock,
        *,
        archive: RootArchive | None,
        every_s: float,
        observe: Callable[[int], None],
    ) -> None:
        """`observe` is told over how many heads a root was made."""
        self._store = store
        self._sign = sign
        self._clock = clock
        self._archive = archive
        self._every_s = every_s
        self._observe = observe

    async def run(self, leadership: Leadership) -> None:
        """The work of one term of office: goes on until cancelled; what fails in one visit is done in the next."""
        while True:
            # Jitter keeps the jobs apart; it needs no cryptographic randomness.
            await asyncio.sleep(self._every_s / VISITS_PER_ROOT * (0.5 + random.random()))  # noqa: S311
            leadership.check()
            try:
                await self.visit()
            except (DatabaseError, OSError):
                continue

    async def visit(self) -> None:
        """Makes a root of every shard whose newest one is old, and exports what was not exported yet."""
        times_ms = await self._store.root_times_ms()
        due_ms = self._clock() - int(self._every_s * 1000)
        for shard in self._store.shards:
            if times_ms.get(shard, 0) <= due_ms:
                await self.anchor(shard)
            await self.export(shard)

    async def anchor(self, shard: int) -> list[SignedRoot]:
        """Makes roots of what changed in a shard; none when nothing did, or another process was faster."""
        made: list[SignedRoot] = []
        above = BELOW_ALL
        leaves: list[Leaf] = []
        while True:
            fresh, above = await self._store.unanchored(shard, above, HEADS_PER_READ)
            leaves += fresh
            if leaves and (not above or len(leaves) >= LEAVES_PER_ROOT):
                signed = await self._make(shard, leaves)
                if signed is None:
                    break
                made.append(signed)
                leaves = []
            if not above:
                break
        return made

    async def _make(self, shard: int, leaves: list[Leaf]) -> SignedRoot | None:
        last = await self._store.last_root(shard)
        root = Root.over(shard, leaves, after=None if last is None else last.root, time_ms=self._clock())
        key_id, signature = self._sign(root.statement())
        signed = SignedRoot(root, key_id, signature)
        if not await self._store.add_root(signed, leaves):
            return None
        self._observe(len(leaves))
        if self._archive is not None:
            await asyncio.to_thread(self._archive.write, signed, leaves)
        return signed

    async def export(self, shard: int) -> None:
        """Exports stored roots that were not exported, since a process died in between."""
        if self._archive is None:
            return
        exported = await asyncio.to_thread(self._archive.last_number, shard)
        for signed in await self._store.roots(shard, exported, ROOTS_PER_EXPORT):
            leaves = await self._store.leaves(shard, signed.root.number)
            await asyncio.to_thread(self._archive.write, signed, leaves)
