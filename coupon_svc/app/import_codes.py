"""Takes over codes that another system made: all lines of a request or none.

Every import is a job, so that a process that dies in between leaves nothing half done: another one completes it or
takes it back. A call with few lines waits for its job; one with a file is answered with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.import_job import pack_lines
from coupon_svc.app.issue import EncodeJob, refuse_closed, refuse_exhausted
from coupon_svc.app.job_ports import JobStore, LineSeal
from coupon_svc.app.jobs import Jobs
from coupon_svc.app.line_check import LineCheck, LinesRefused
from coupon_svc.app.pace import Pace
from coupon_svc.app.ports import Call, Clock, CodeBook, Ids, Store
from coupon_svc.app.requests import replay
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.import_lines import ImportLine, LineError, csv_lines
from coupon_svc.domain.job import CHUNK, Job, JobKind, JobPhase, JobState
from coupon_svc.domain.routing import home_shard
from meshkit.errors import InvalidFields, MeshError

MAX_LINES = 100_000
# How often a call looks whether the job that it waits for has ended.
LOOK_EVERY_S = 0.02
# What an error status can hold of the lines of a failed job.
_MAX_REPORTED = 64

Encode = Callable[[Sequence[str]], bytes]


class ImportCodes:
    """The use case."""

    def __init__(
        self,
        *,
        store: Store,
        job_store: JobStore,
        jobs: Jobs,
        seal: LineSeal,
        directory: CouponDirectory,
        batches: BatchCache,
        codes: CodeBook,
        ids: Ids,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._job_store = job_store
        self._jobs = jobs
        self._seal = seal
        self._directory = directory
        self._batches = batches
        self._codes = codes
        self._ids = ids
        self._clock = clock

    async def __call__(self, call: Call, *, batch_id: str, lines: Sequence[ImportLine], encode: Encode) -> bytes:
        """Imports all lines and gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, IDEMPOTENCY_KEY_REUSED.
            LinesRefused: lines are wrong.
        """
        key = call.key(home_shard(call.caller))
        earlier = (await self._store.recorded([key])).get(key)
        if earlier is None:
            batch = await self._admit(batch_id, len(lines))
            errors = await self._check(lines)
            if errors:
                raise LinesRefused(errors, len(errors))
            job_id = await self._create(call, batch, lines, direct=True, encode=_job_id)
        else:
            job_id = replay(earlier, key, call.request_hash)
        job = await self._jobs.ended(job_id.decode(), look_every_s=LOOK_EVERY_S)
        if job.state is JobState.FAILED:
            raise await self._refusal(job)
        self._directory.learn_imported_lengths({len(self._codes.normalise(line.code)) for line in lines})
        return encode(await self._jobs.coupons(job.job_id, job.chunks))

    async def validate(self, *, batch_id: str, lines: Sequence[ImportLine]) -> Sequence[LineError]:
        """What is wrong with which line; changes nothing.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED.
        """
        await self._admit(batch_id, len(lines))
        return await self._check(lines)

    async def by_job(self, call: Call, *, batch_id: str, csv: str, encode: EncodeJob) -> bytes:
        """Makes a job that imports a file, and gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, TOO_MANY_JOBS,
                VALIDATION_FAILED, IDEMPOTENCY_KEY_REUSED.
        """
        key = call.key(home_shard(call.caller))
        earlier = (await self._store.recorded([key])).get(key)
        if earlier is not None:
            return replay(earlier, key, call.request_hash)
        lines: list[ImportLine] = []
        pace = Pace()
        for line in csv_lines(csv):
            lines.append(line)
            await pace.breathe()
        if not 0 < len(lines) <= MAX_LINES:
            raise InvalidFields([("csv", f"must have 1 to {MAX_LINES} lines, but has {len(lines)}")])
        batch = await self._admit(batch_id, len(lines))
        await self._jobs.refuse_too_many(call.caller)
        return await self._create(call, batch, lines, direct=False, encode=encode)

    async def _admit(self, batch_id: str, quantity: int) -> Batch:
        batch = await self._batches.batch(batch_id)
        await refuse_closed(self._batches, batch, self._clock())
        refuse_exhausted(batch, quantity)
        return batch

    async def _check(self, lines: Sequence[ImportLine]) -> list[LineError]:
        return await LineCheck(self._store, self._job_store, self._codes, made_by=b"").check(lines)

    async def _create(
        self, call: Call, batch: Batch, lines: Sequence[ImportLine], *, direct: bool, encode: EncodeJob
    ) -> bytes:
        job_id = f"{self._ids.next(home_shard(call.caller)):019d}"
        sealed = []
        pace = Pace()
        for chunk, first in enumerate(range(0, len(lines), CHUNK)):
            sealed.append(self._seal.seal_lines(pack_lines(lines[first : first + CHUNK]), job_id, chunk))
            await pace.breathe()
        job = Job(
            job_id=job_id,
            kind=JobKind.IMPORT,
            phase=JobPhase.CHECK,
            direct=direct,
            batch_id=batch.batch_id,
            caller=call.caller,
            request_id=call.request_id,
            request_hash=call.request_hash,
            trace_id=call.trace_id,
            total_count=len(lines),
            create_time_ms=self._clock(),
        )
        return await self._jobs.create(call, job, sealed, encode=encode)

    async def _refusal(self, job: Job) -> MeshError:
        errors = await self._jobs.line_errors(job.job_id, above_line=0, limit=_MAX_REPORTED)
        if errors:
            return LinesRefused(errors, job.line_error_count)
        if job.error is None:
            raise LookupError(f"job {job.job_id} failed without saying why")
        return MeshError(job.error.reason, **job.error.metadata)


def _job_id(job: Job) -> bytes:
    return job.job_id.encode()
