"""Recalls batches that were made by mistake: shows the stake, blocks the batch for good, voids its unused coupons.

The request decides and blocks; a sweep then voids, a chunk of one shard at a time. What a chunk voided and where the
next one begins is stored with it, so that a sweep that was cut short goes on there and counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache, batch_row
from coupon_svc.app.ports import Call, Clock, Store, Unit
from coupon_svc.app.recall_ports import Recall, RecallBook, RecallPart, StatusCount
from coupon_svc.app.requests import MAX_RUNS, refuse_moved, replay, run_once
from coupon_svc.app.steps import step
from coupon_svc.domain.batch import Batch, BlockScope, RecallState, Stake, stake_of
from coupon_svc.domain.coupon import Coupon, CouponStatus, end
from coupon_svc.domain.journal import ChainHead, JournalKind, Sign
from coupon_svc.domain.routing import SHARDS, id_shard
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, Deadlock

UNUSED = (CouponStatus.UNACTIVATED, CouponStatus.ACTIVATED, CouponStatus.FROZEN)
CHUNK_COUPONS = 200
# At most this many chunks in one visit of one batch; the next visit goes on.
MAX_CHUNKS = 1_000


@dataclass(frozen=True, slots=True)
class RecallView:
    """What a reply says; `recall` is None in a preview."""

    batch: Batch
    terms: Terms
    stake: Stake
    counts: Mapping[CouponStatus, StatusCount]
    recall: Recall | None = None


Encode = Callable[[RecallView], bytes]


class RecallBatch:
    """The use case."""

    def __init__(self, *, store: Store, recalls: RecallBook, batches: BatchCache, sign: Sign, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._recalls = recalls
        self._batches = batches
        self._sign = sign
        self._clock = clock

    async def __call__(
        self, call: Call, *, batch_id: str, reason: str, confirmed: Stake | None, encode: Encode
    ) -> bytes:
        """Shows the stake, or recalls when it was confirmed; gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_RECALLED, RECALL_STAKE_CHANGED, IDEMPOTENCY_KEY_REUSED.
        """
        key = call.key(id_shard(batch_id))
        earlier = (await self._store.recorded([key])).get(key)
        if earlier is not None:
            return replay(earlier, key, call.request_hash)
        view = await self._look(batch_id)
        if confirmed is None:
            view.batch.refuse_when_recalled()
            return encode(view)

        async def work(unit: Unit) -> bytes:
            batch = await unit.lock_batch(batch_id)
            if batch is None:
                raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
            batch.refuse_when_recalled()
            # More may have been issued since the coupons were counted; while the batch is locked, nothing is.
            more = batch.issued_quantity - view.batch.issued_quantity
            batch.refuse_unconfirmed(replace(view.stake, coupons=view.stake.coupons + more), confirmed)
            return encode(await self._begin(unit, batch, call, reason, view))

        response = await run_once(self._store, key, call.request_hash, self._clock, work)
        self._batches.forget(batch_id)
        return response

    async def progress(self, batch: Batch) -> Recall | None:
        """How far the recall of a batch is; None when it is not recalled."""
        return None if batch.recall is RecallState.NONE else await self._recalls.get(batch.batch_id)

    async def _look(self, batch_id: str) -> RecallView:
        batch = await self._store.get_batch(batch_id)
        if batch is None:
            raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
        terms = await self._batches.terms_of(batch)
        counts: dict[CouponStatus, StatusCount] = {}
        now_ms = self._clock()
        for shard in range(SHARDS):
            for status, found in (await self._recalls.counts(shard, batch_id, now_ms=now_ms)).items():
                before = counts.get(status, StatusCount())
                counts[status] = StatusCount(before.coupons + found.coupons, before.balance_minor + found.balance_minor)
        stake = stake_of(
            terms,
            coupons=sum(counts[status].coupons for status in UNUSED if status in counts),
            balance_minor=sum(counts[status].balance_minor for status in UNUSED if status in counts),
        )
        return RecallView(batch, terms, stake, counts)

    async def _begin(self, unit: Unit, batch: Batch, call: Call, reason: str, view: RecallView) -> RecallView:
        origin = call.origin(self._clock())
        row = batch_row(batch, JournalKind.BATCH_RECALLED, BlockScope.BOTH, origin, self._sign, reason=reason)
        recall = Recall(batch.batch_id, reason, view.stake, origin)
        await self._recalls.begin(unit, batch, recall, ChainHead.of(row))
        await unit.append_journal([row])
        blocked = replace(batch, block_scope=BlockScope.BOTH, recall=RecallState.RUNNING, head=ChainHead.of(row))
        return replace(view, batch=blocked, recall=recall)


class RecallSweep:
    """Voids the coupons of recalled batches."""

    def __init__(
        self,
        *,
        store: Store,
        recalls: RecallBook,
        batches: BatchCache,
        sign: Sign,
        clock: Clock,
        settle_ms: int,
        observe: Callable[[int], None],
    ) -> None:
        """`settle_ms` is the longest that an issue which was let in before the block can still be under way.

        `observe` is told how many coupons a chunk voided.
        """
        self._store = store
        self._recalls = recalls
        self._batches = batches
        self._sign = sign
        self._clock = clock
        self._settle_ms = settle_ms
        self._observe = observe

    async def run_once(self, database: str) -> int:
        """Goes on with the recalls of the batches that live in a database; returns how many coupons it voided.

        Raises:
            DatabaseError: A database is away; what was committed stays.
        """
        voided = 0
        for batch_id in await self._recalls.running(database):
            voided += await self._continue(batch_id)
        return voided

    async def _continue(self, batch_id: str) -> int:
        recall = await self._recalls.get(batch_id)
        if recall is None:
            raise LookupError(f"batch {batch_id} is being recalled, but batch_recall has no row of it")
        terms = await self._batches.terms_of(await self._batches.batch(batch_id))
        # Only a scan that begins when nothing can be under way any more has seen every coupon.
        settled_ms = recall.origin.time_ms + self._settle_ms
        parts = {part.shard: part for part in await self._recalls.parts(batch_id)}
        voided = chunks = 0
        complete = True
        for shard in range(SHARDS):
            part = parts.get(shard)
            if part is None:
                part = RecallPart(shard, batch_id)
                await self._recalls.add_part(part)
            scanned = part.complete_ms is not None and self._clock() < settled_ms
            while not (scanned or _is_done(part, settled_ms)) and chunks < MAX_CHUNKS:
                chunks += 1
                before = part.voided_coupons
                part = await self._chunk(part, recall, terms)
                voided += part.voided_coupons - before
                scanned = part.begin_ms is None and self._clock() < settled_ms
            complete = complete and _is_done(part, settled_ms)
        if complete:
            await self._finish(batch_id)
        return voided

    async def _chunk(self, part: RecallPart, recall: Recall, terms: Terms) -> RecallPart:
        """Looks at the next coupons of a shard, voids what is unused, and gives the part as it is then."""
        now_ms = self._clock()
        found = await self._recalls.unused(
            part.shard, part.batch_id, after=part.after_coupon_id, now_ms=now_ms, limit=CHUNK_COUPONS
        )
        keys = {(part.shard, each.coupon_id) for each in found}
        for _ in range(MAX_RUNS):
            try:
                async with self._store.unit(part.shard) as unit:
                    await refuse_moved(unit, {part.shard})
                    await unit.frozen_accounts({(part.shard, each.user_id) for each in found if each.user_id})
                    current = await self._recalls.lock_part(unit, part.shard, part.batch_id)
                    if current != part:
                        return current  # Somebody else went on meanwhile.
                    coupons = await self._lock_unused(unit, keys, now_ms)
                    origin = replace(recall.origin, time_ms=now_ms)
                    steps = [
                        step(coupon, end(coupon), JournalKind.RECALLED, origin, self._sign, reason=recall.reason)
                        for coupon in coupons
                    ]
                    if steps:
                        await unit.update_coupons([update for update, _ in steps])
                        await unit.append_journal([row for _, row in steps])
                    stake = stake_of(
                        terms, coupons=len(coupons), balance_minor=sum(coupon.balance_minor for coupon in coupons)
                    )
                    last = found[-1].coupon_id if len(found) == CHUNK_COUPONS else None
                    after = _advanced(current, stake, last, now_ms)
                    await self._recalls.store_part(unit, after)
            except (Deadlock, CommitOutcomeUnknown):
                continue
            self._observe(len(steps))
            return after
        raise Deadlock("coupons of a recalled batch could not be locked")

    async def _lock_unused(self, unit: Unit, keys: set[tuple[int, str]], now_ms: int) -> list[Coupon]:
        if not keys:
            return []
        coupons = await unit.lock_coupons(keys)
        unused = await self._recalls.still_unused(unit, keys, now_ms=now_ms)
        return [coupon for coupon in coupons.values() if coupon.coupon_id in unused]

    async def _finish(self, batch_id: str) -> None:
        shard = id_shard(batch_id)
        async with self._store.unit(shard) as unit:
            await refuse_moved(unit, {shard})
            batch = await unit.lock_batch(batch_id)
            if batch is not None and batch.recall is RecallState.RUNNING:
                await self._recalls.finish(unit, batch_id, self._clock())


def _is_done(part: RecallPart, settled_ms: int) -> bool:
    return part.complete_ms is not None and part.complete_ms >= settled_ms


def _advanced(part: RecallPart, voided: Stake, last: str | None, now_ms: int) -> RecallPart:
    """The part after a chunk that ended with coupon `last`, or with the end of the shard when that is None."""
    begin_ms = now_ms if part.begin_ms is None else part.begin_ms
    counted = replace(
        part,
        voided_coupons=part.voided_coupons + voided.coupons,
        voided_minor=part.voided_minor + voided.money_minor,
    )
    if last is not None:
        return replace(counted, after_coupon_id=last, begin_ms=begin_ms)
    return replace(counted, after_coupon_id="", begin_ms=None, complete_ms=begin_ms)
