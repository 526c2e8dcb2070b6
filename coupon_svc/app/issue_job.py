"""Runs a job that issues coupons: chunk by chunk, each chunk once, whoever runs it and however often.

What a chunk made is recorded with it under the job's name. A job that can't go on (its batch was blocked, say) voids
the chunks that were not made, so that a slow process can't make them any more, and gives what they would have taken
back to the batch.
"""

from __future__ import annotations

import hashlib

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.issue import draw_from_batch, refuse_closed
from coupon_svc.app.issuing import CouponMaker, Order
from coupon_svc.app.job_ports import JobStore, Lease
from coupon_svc.app.jobs import CHUNKS_AT_ONCE, JOB_CALLER, PASSING, LeaseLostError, all_or_first_error, held
from coupon_svc.app.ports import Call, Client, Clock, RequestKey, Store
from coupon_svc.app.requests import refuse_moved
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.job import Job, JobError, JobPhase, JobState
from coupon_svc.domain.journal import Origin
from coupon_svc.domain.routing import SHARDS, id_shard, spread_shard, user_shard
from meshkit.errors import MeshError

# Apart from each other, so that neighbouring chunks lie in other databases; odd, so that all shards have their turn.
_STRIDE = 37


def job_call(job: Job) -> Call:
    """The name under which a job draws from a batch and records its steps."""
    return Call(JOB_CALLER, job.job_id, job.request_hash, job.trace_id, Client())


def job_digest(job: Job) -> bytes:
    """Names the job that made a thing, in 32 bytes."""
    return hashlib.sha256(f"job:{job.job_id}".encode()).digest()


def job_origin(job: Job, now_ms: int) -> Origin:
    """What the journal keeps of the call that asked for the job."""
    return Origin(caller=job.caller, request_id=job.request_id, trace_id=job.trace_id, time_ms=now_ms)


class ReturnDraw:
    """Gives back to a batch what a failed job drew and did not use."""

    def __init__(self, store: Store, jobs: JobStore, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._jobs = jobs
        self._clock = clock

    async def drew(self, job: Job) -> bool:
        """Whether the job drew; one that did not can't any more."""
        shard = id_shard(job.batch_id)
        key = job_call(job).key(shard)
        async with self._store.unit(shard) as unit:
            await refuse_moved(unit, {shard})
            await unit.lock_batch(job.batch_id)
            if await unit.drawn(job.batch_id, key) is not None:
                return True
            await unit.draw(job.batch_id, key, job.request_hash, 0, self._clock())
        return False

    async def keep(self, job: Job, kept: int) -> None:
        """Lowers the draw to what was used."""
        shard = id_shard(job.batch_id)
        key: RequestKey = job_call(job).key(shard)
        async with self._store.unit(shard) as unit:
            await refuse_moved(unit, {shard})
            await unit.lock_batch(job.batch_id)
            drawn = await unit.drawn(job.batch_id, key)
            if drawn is not None and drawn[1] > kept:
                await self._jobs.lower_draw(unit, job.batch_id, key, drawn[1], kept)


class IssueJob:
    """Handles jobs of the kind ISSUE."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: JobStore,
        batches: BatchCache,
        maker: CouponMaker,
        return_draw: ReturnDraw,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._jobs = jobs
        self._batches = batches
        self._maker = maker
        self._return_draw = return_draw
        self._clock = clock

    async def run(self, job: Job, lease: Lease) -> None:
        """See `Handler.run`."""
        if job.phase is JobPhase.UNDO:
            await self._undo(job, lease)
            return
        try:
            await self._fill(job, lease)
        except MeshError as refusal:
            if refusal.reason in PASSING:
                raise
            await self.fail(job, lease, JobError(refusal.reason, refusal.metadata))

    async def fail(self, job: Job, lease: Lease, error: JobError) -> None:
        """See `Handler.fail`."""
        await held(self._jobs.begin_undo(job.job_id, lease, error, ()))
        await self._undo(job, lease)

    async def _fill(self, job: Job, lease: Lease) -> None:
        batch = await self._batches.batch(job.batch_id)
        if await draw_from_batch(self._store, job_call(job), batch, job.total_count, self._clock) < job.total_count:
            raise LeaseLostError
        made = await self._jobs.done_chunks(job.job_id)
        done = sum(map(job.chunk_size, made))
        waiting = iter([chunk for chunk in range(job.chunks) if chunk not in made])

        async def work() -> None:
            nonlocal done
            for chunk in waiting:
                current = await self._batches.batch(job.batch_id)
                await refuse_closed(self._batches, current, self._clock())
                ids = (await self._maker.make(self._order(job, current, chunk))).decode().split(",")
                if ids == [""]:
                    raise LeaseLostError
                done += len(ids)
                await held(self._jobs.note_chunk(job.job_id, lease, chunk, ids, done))

        await all_or_first_error([work() for _ in range(CHUNKS_AT_ONCE)])
        await held(self._jobs.finish(job.job_id, lease, JobState.SUCCEEDED, job.total_count, self._clock()))

    async def _undo(self, job: Job, lease: Lease) -> None:
        kept = 0
        if await self._return_draw.drew(job):
            batch = await self._batches.batch(job.batch_id)
            for chunk in range(job.chunks):
                if ids := await self._maker.void(self._order(job, batch, chunk)):
                    made = ids.decode().split(",")
                    kept += len(made)
                    await held(self._jobs.note_chunk(job.job_id, lease, chunk, made, kept))
            await self._return_draw.keep(job, kept)
        await held(self._jobs.finish(job.job_id, lease, JobState.FAILED, kept, self._clock()))

    def _order(self, job: Job, batch: Batch, chunk: int) -> Order:
        spread = (spread_shard(job.job_id) + chunk * _STRIDE) % SHARDS
        return Order(
            caller=JOB_CALLER,
            request_id=f"{job.job_id}-{chunk}",
            request_hash=job.request_hash,
            made_by=job_digest(job),
            origin=job_origin(job, self._clock()),
            batch=batch,
            user_id=job.user_id,
            shard=user_shard(job.user_id) if job.user_id else spread,
            quantity=job.chunk_size(chunk),
        )
