"""Issues coupons of a batch: a few at once, to a user or as unactivated codes, and many by a job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.issuing import CouponMaker, Order
from coupon_svc.app.job_ports import ExportStore
from coupon_svc.app.jobs import Jobs
from coupon_svc.app.ports import Call, Clock, CodeBook, Ids, RequestKey, Store
from coupon_svc.app.requests import refuse_moved, replay
from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.job import Job, JobKind, JobPhase
from coupon_svc.domain.routing import home_shard, id_shard, spread_shard, user_shard
from meshkit.errors import MeshError

# More than this many are issued by a job.
MAX_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class IssuedCoupon:
    """A new coupon and its code, a bearer secret."""

    coupon_id: str
    code: str


EncodeJob = Callable[[Job], bytes]


def request_digest(call: Call) -> bytes:
    """Names the request that made a thing, in 32 bytes."""
    return hashlib.sha256(f"{len(call.caller)}:{call.caller}{call.request_id}".encode()).digest()


async def draw_from_batch(store: Store, call: Call, batch: Batch, quantity: int, clock: Clock) -> int:
    """Takes `quantity` from the batch's total, once per request, before anything is issued: never oversold.

    Returns:
        What the request holds: less than `quantity` when some was given back since.

    Raises:
        MeshError: BATCH_BLOCKED, BATCH_RECALLED, BATCH_EXHAUSTED, IDEMPOTENCY_KEY_REUSED.
    """
    shard = id_shard(batch.batch_id)
    key = call.key(shard)
    async with store.unit(shard) as unit:
        await refuse_moved(unit, {shard})
        current = await unit.lock_batch(batch.batch_id)
        if current is None:
            raise MeshError("BATCH_NOT_FOUND", batch_id=batch.batch_id)
        earlier = await unit.drawn(batch.batch_id, key)
        if earlier is not None:
            if earlier[0] != call.request_hash:
                raise MeshError("IDEMPOTENCY_KEY_REUSED", request_id=call.request_id)
            return earlier[1]
        # The batch may have been blocked since it was read; whoever blocks it waits for this draw, or is seen here.
        current.refuse_when_blocked(BlockScope.CLAIM)
        refuse_exhausted(current, quantity)
        await unit.draw(batch.batch_id, key, call.request_hash, quantity, clock())
    return quantity


def refuse_exhausted(batch: Batch, quantity: int) -> None:
    """Refuses to draw more than a batch has left.

    Raises:
        MeshError: BATCH_EXHAUSTED.
    """
    if batch.total_quantity is not None:
        left = batch.total_quantity - batch.issued_quantity
        if quantity > left:
            raise MeshError("BATCH_EXHAUSTED", batch_id=batch.batch_id, left=str(left))


async def refuse_closed(batches: BatchCache, batch: Batch, now_ms: int) -> None:
    """Refuses to issue from a batch that is blocked or over.

    Raises:
        MeshError: BATCH_BLOCKED, COUPON_EXPIRED.
    """
    batch.refuse_when_blocked(BlockScope.CLAIM)
    (await batches.terms_of(batch)).refuse_when_over(batch_id=batch.batch_id, now_ms=now_ms)


class IssueCoupons:
    """The use case."""

    def __init__(
        self,
        *,
        store: Store,
        exports: ExportStore,
        batches: BatchCache,
        maker: CouponMaker,
        jobs: Jobs,
        codes: CodeBook,
        ids: Ids,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._exports = exports
        self._batches = batches
        self._maker = maker
        self._jobs = jobs
        self._codes = codes
        self._ids = ids
        self._clock = clock

    async def __call__(
        self, call: Call, *, batch_id: str, user_id: int | None, quantity: int
    ) -> Sequence[IssuedCoupon]:
        """Issues `quantity` coupons at once: into the user's shard, or as codes into shards picked by the request.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, CODE_SPACE_EXHAUSTED,
                ACCOUNT_FROZEN, IDEMPOTENCY_KEY_REUSED.
        """
        batch = await self._batches.batch(batch_id)
        order = Order(
            caller=call.caller,
            request_id=call.request_id,
            request_hash=call.request_hash,
            made_by=request_digest(call),
            origin=call.origin(self._clock()),
            batch=batch,
            user_id=user_id or 0,
            shard=spread_shard(call.caller, call.request_id) if user_id is None else user_shard(user_id),
            quantity=quantity,
        )
        if not await self._was_made(order):
            await self._admit(batch, user_id)
            await draw_from_batch(self._store, call, batch, quantity, self._clock)
        ids = (await self._maker.make(order)).decode().split(",")
        # The record keeps ids only: codes are rebuilt from their ciphertext, for the first reply as for a replay.
        stored = await self._exports.coupons_by_id(ids)
        return [IssuedCoupon(each, self._codes.open(stored[each].code_sealed, each)) for each in ids]

    async def by_job(
        self, call: Call, *, batch_id: str, user_id: int | None, quantity: int, encode: EncodeJob
    ) -> bytes:
        """Makes a job that issues `quantity` coupons, and gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, ACCOUNT_FROZEN, TOO_MANY_JOBS,
                IDEMPOTENCY_KEY_REUSED.
        """
        shard = home_shard(call.caller)
        key = call.key(shard)
        earlier = (await self._store.recorded([key])).get(key)
        if earlier is not None:
            return replay(earlier, key, call.request_hash)
        batch = await self._batches.batch(batch_id)
        await self._admit(batch, user_id)
        # The job draws; that there is too little left is said at once.
        refuse_exhausted(batch, quantity)
        await self._jobs.refuse_too_many(call.caller)
        job = Job(
            job_id=f"{self._ids.next(shard):019d}",
            kind=JobKind.ISSUE,
            phase=JobPhase.FILL,
            direct=False,
            batch_id=batch_id,
            user_id=user_id or 0,
            caller=call.caller,
            request_id=call.request_id,
            request_hash=call.request_hash,
            trace_id=call.trace_id,
            total_count=quantity,
            create_time_ms=self._clock(),
        )
        return await self._jobs.create(call, job, (), encode=encode)

    async def _was_made(self, order: Order) -> bool:
        for shard in self._maker.places(order):
            key = RequestKey(shard, order.caller, order.request_id)
            if await self._store.recorded([key]):
                return True
        return False

    async def _admit(self, batch: Batch, user_id: int | None) -> None:
        now_ms = self._clock()
        await refuse_closed(self._batches, batch, now_ms)
        if user_id is not None and await self._store.ensure_accounts({(user_shard(user_id), user_id)}, now_ms):
            raise MeshError("ACCOUNT_FROZEN", user_id=str(user_id))
