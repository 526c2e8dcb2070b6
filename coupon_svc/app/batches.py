"""Use cases around batches: make one, look at one, block one; and the cache through which the hot path reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from coupon_svc.app.ports import Call, Clock, Ids, Store, Unit
from coupon_svc.app.requests import run_once
from coupon_svc.domain.batch import Batch, BlockScope, Caps
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.journal import ChainHead, JournalKind, JournalRow, Origin, Sign, sealed
from coupon_svc.domain.routing import home_shard, id_shard
from coupon_svc.domain.terms import Terms, check_terms
from meshkit.errors import MeshError

# A block must be obeyed everywhere within one second.
BATCH_CACHE_TTL_MS = 500
# Terms are immutable; the bound only limits memory.
MAX_CACHED = 10_000

Encode = Callable[[Batch, Terms], bytes]
_Value = TypeVar("_Value")


class NotRead(Exception):
    """A transaction needs batches or terms that were not read before it; read them and run it again.

    It holds a connection and locks that others wait for with theirs, so that reading by another connection could wait
    for them in turn.
    """

    def __init__(self, coupons: Iterable[Coupon]) -> None:
        self.coupons = tuple(coupons)
        super().__init__(f"batches or terms of {len(self.coupons)} coupons")


class BatchCache:
    """Batches, at most half a second old, and terms, which never change."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Reads through to `store`."""
        self._store = store
        self._clock = clock
        self._batches: dict[str, tuple[int, Batch]] = {}
        self._terms: dict[str, Terms] = {}

    async def batches(self, batch_ids: Iterable[str]) -> Mapping[str, Batch]:
        """Batches by id.

        Raises:
            MeshError: BATCH_NOT_FOUND.
        """
        now_ms = self._clock()
        wanted = set(batch_ids)
        stale = [
            batch_id
            for batch_id in wanted
            if (cached := self._batches.get(batch_id)) is None or not 0 <= now_ms - cached[0] < BATCH_CACHE_TTL_MS
        ]
        for batch_id, batch in zip(stale, await asyncio.gather(*map(self._store.get_batch, stale)), strict=True):
            if batch is None:
                raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
            _bounded(self._batches)[batch_id] = (now_ms, batch)
        return {batch_id: self._batches[batch_id][1] for batch_id in wanted}

    async def of_any_age(self, batch_ids: Iterable[str]) -> Mapping[str, Batch]:
        """Batches by id, for what of them never changes, such as their caps; raises MeshError BATCH_NOT_FOUND."""
        wanted = set(batch_ids)
        known = {batch_id: self._batches[batch_id][1] for batch_id in wanted if batch_id in self._batches}
        return {**known, **await self.batches(wanted - known.keys())}

    def lasting(self, coupons: Iterable[Coupon]) -> tuple[Mapping[str, Batch], Mapping[str, Terms]]:
        """Batches and terms of coupons, for what of them never changes, without reading anything; raises NotRead."""
        wanted = tuple(coupons)
        try:
            return (
                {coupon.batch_id: self._batches[coupon.batch_id][1] for coupon in wanted},
                {coupon.terms_id: self._terms[coupon.terms_id] for coupon in wanted},
            )
        except KeyError as missing:
            raise NotRead(wanted) from missing

    async def read(self, missing: NotRead) -> None:
        """Reads what a transaction lacked."""
        await self.of_any_age(coupon.batch_id for coupon in missing.coupons)
        await self.terms(coupon.terms_id for coupon in missing.coupons)

    async def batch(self, batch_id: str) -> Batch:
        """One batch; raises MeshError BATCH_NOT_FOUND."""
        return (await self.batches([batch_id]))[batch_id]

    async def terms(self, terms_ids: Iterable[str]) -> Mapping[str, Terms]:
        """Terms by id."""
        wanted = set(terms_ids)
        missing = [terms_id for terms_id in wanted if terms_id not in self._terms]
        for terms_id, terms in zip(missing, await asyncio.gather(*map(self._store.get_terms, missing)), strict=True):
            if terms is None:
                raise LookupError(f"coupon_terms has no row {terms_id}")
            _bounded(self._terms)[terms_id] = terms
        return {terms_id: self._terms[terms_id] for terms_id in wanted}

    async def terms_of(self, batch: Batch) -> Terms:
        """The terms of a batch."""
        return (await self.terms([batch.terms_id]))[batch.terms_id]

    def forget(self, batch_id: str) -> None:
        """Drops a batch that this process changed."""
        self._batches.pop(batch_id, None)


def _bounded(cache: dict[str, _Value]) -> dict[str, _Value]:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    return cache


def batch_row(
    batch: Batch, kind: JournalKind, scope: BlockScope, origin: Origin, sign: Sign, *, reason: str = ""
) -> JournalRow:
    """The next row of a batch's chain: what is blocked before and after stands in the place of the status."""
    return sealed(
        JournalRow(
            shard=id_shard(batch.batch_id),
            coupon_id=batch.batch_id,
            seq=batch.head.seq + 1,
            kind=kind,
            status_before=batch.block_scope,
            status_after=scope,
            user_id=0,
            origin=origin,
            balance_after_minor=0,
            reason=reason,
            prev_hash=batch.head.hash,
        ),
        sign,
    )


class Batches:
    """Makes, shows and blocks batches."""

    def __init__(self, store: Store, cache: BatchCache, ids: Ids, sign: Sign, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._cache = cache
        self._ids = ids
        self._sign = sign
        self._clock = clock

    async def create(
        self,
        call: Call,
        *,
        name: str,
        terms: Terms,
        total_quantity: int | None,
        code_length: int,
        caps: Caps,
        encode: Encode,
    ) -> bytes:
        """Makes a batch in the caller's home shard and gives the encoded reply.

        Raises:
            MeshError: BATCH_TERMS_INVALID, IDEMPOTENCY_KEY_REUSED.
        """
        shard = home_shard(call.caller)

        async def work(unit: Unit) -> bytes:
            now_ms = self._clock()
            check_terms(terms, now_ms=now_ms)
            batch = Batch(
                batch_id=f"{self._ids.next(shard):019d}",
                terms_id=f"{self._ids.next(shard):019d}",
                name=name,
                total_quantity=total_quantity,
                issued_quantity=0,
                code_length=code_length,
                block_scope=BlockScope.NONE,
                create_time_ms=now_ms,
                caps=caps,
            )
            row = batch_row(batch, JournalKind.BATCH_CREATED, BlockScope.NONE, call.origin(now_ms), self._sign)
            batch = replace(batch, head=ChainHead.of(row))
            await unit.insert_batch(batch, terms)
            await unit.append_journal([row])
            return encode(batch, terms)

        return await run_once(self._store, call.key(shard), call.request_hash, self._clock, work)

    async def get(self, batch_id: str) -> tuple[Batch, Terms]:
        """A batch as it is now.

        Raises:
            MeshError: BATCH_NOT_FOUND.
        """
        batch = await self._store.get_batch(batch_id)
        if batch is None:
            raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
        return batch, await self._cache.terms_of(batch)

    async def block(self, call: Call, *, batch_id: str, scope: BlockScope, encode: Encode) -> bytes:
        """Changes what is blocked and gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_RECALLED, IDEMPOTENCY_KEY_REUSED.
        """
        _, terms = await self.get(batch_id)

        async def work(unit: Unit) -> bytes:
            batch = await unit.lock_batch(batch_id)
            if batch is None:
                raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
            batch.refuse_when_recalled()
            row = batch_row(batch, JournalKind.BATCH_BLOCKED, scope, call.origin(self._clock()), self._sign)
            await unit.set_block_scope(batch_id, scope, ChainHead.of(row))
            await unit.append_journal([row])
            return encode(replace(batch, block_scope=scope), terms)

        response = await run_once(self._store, call.key(id_shard(batch_id)), call.request_hash, self._clock, work)
        self._cache.forget(batch_id)
        return response
