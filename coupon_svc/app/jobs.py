"""Makes jobs, runs them under a lease, and tells how they stand.

A job is a row in its caller's home shard. Whoever runs it holds a lease on that row, which each step of the work
renews; when a process dies, its leases run out and other processes take its jobs over. Two processes may still be at
one job (the first was only slow), so every step is written such that its second doing changes nothing: the lease saves
work, the rows decide.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from coupon_svc.app.job_ports import JobStore, Lease
from coupon_svc.app.ports import Call, Clock, Store, Unit
from coupon_svc.app.requests import run_once
from coupon_svc.domain.import_lines import LineError
from coupon_svc.domain.job import Job, JobError, JobKind, JobState
from coupon_svc.domain.routing import home_shard
from meshkit.errors import MeshError
from meshkit.mysql_errors import DatabaseError

# What a caller may have under way at once.
MAX_OPEN_JOBS = 20
# Takeovers of a job without any progress between them, after which it fails.
MAX_ATTEMPTS = 10
RETRY_MS = 1_000
# Jobs without a waiting call that one process runs at once.
MAX_BULK = 1
# Jobs with a waiting call that one process takes over at once.
MAX_TAKEN_DIRECT = 8
# Chunks that a job makes at the same time: while the database works on one, the next one is prepared.
CHUNKS_AT_ONCE = 2
# Jobs that are looked for in one database at a time.
_DUE_AT_ONCE = 5
# Reasons that pass by themselves; a job that meets one is tried again.
PASSING = frozenset({"UNAVAILABLE", "SHARD_MOVED", "OVERLOADED"})
# Steps of jobs are recorded under this caller, which no token can carry.
JOB_CALLER = ":job"


class LeaseLostError(Exception):
    """Another process runs the job by now."""


class Handler(Protocol):
    """Knows how to run one kind of jobs."""

    async def run(self, job: Job, lease: Lease) -> None:
        """Runs a job from where it stands to its end.

        Raises:
            LeaseLostError: another process runs it.
            MeshError: one of PASSING; DatabaseError: try again later.
        """

    async def fail(self, job: Job, lease: Lease, error: JobError) -> None:
        """Ends a job that can't go on, if that is still possible; raises as `run` does."""


class JobRunner:
    """Runs jobs in this process: those made here at once, those of dead processes as their leases run out."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: JobStore,
        handlers: Mapping[JobKind, Handler],
        lease_ms: int,
        poll_s: float,
        observe: Callable[[str], None],
        report_defect: Callable[[Job, BaseException], None],
    ) -> None:
        """`observe` is told "taken", "ended", "lost", "delayed" or "defect"; `poll_s` is about how often is looked."""
        self._store = store
        self._jobs = jobs
        self._handlers = handlers
        self._lease_ms = lease_ms
        self._poll_s = poll_s
        self._observe = observe
        self._report_defect = report_defect
        self._wake = asyncio.Event()
        self._bulk: set[asyncio.Task[MeshError | None]] = set()
        self._direct: set[asyncio.Task[MeshError | None]] = set()

    def new_lease(self) -> Lease:
        """A lease of a holder that nobody else is."""
        return Lease(os.urandom(16), self._lease_ms)

    def wake(self) -> None:
        """Looks for jobs now."""
        self._wake.set()

    def start(self, job: Job, lease: Lease) -> asyncio.Task[MeshError | None]:
        """Runs a job that this process holds, also when nobody waits any more; gives why it has to wait, if so."""
        running = self._direct if job.direct else self._bulk
        task = asyncio.create_task(self._run_held(job, lease), name=f"job-{job.job_id}")
        running.add(task)

        def ended(_: asyncio.Task[MeshError | None]) -> None:
            running.discard(task)
            self._wake.set()

        task.add_done_callback(ended)
        return task

    async def run(self) -> None:
        """Looks for jobs that nobody holds and runs them, until cancelled."""
        while True:
            # Jitter keeps the processes apart; it needs no cryptographic randomness.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s * (0.5 + random.random())):  # noqa: S311
                    await self._wake.wait()
            self._wake.clear()
            for database in self._store.databases:
                with suppress(DatabaseError, MeshError):
                    await self.take_due(database)

    async def take_due(self, database: str) -> int:
        """Starts jobs of one database that nobody holds, as far as there is room, and gives how many."""
        taken = 0
        for job_id, direct in await self._jobs.due_jobs(
            database, _DUE_AT_ONCE, direct_only=len(self._bulk) >= MAX_BULK
        ):
            if (len(self._direct) >= MAX_TAKEN_DIRECT) if direct else (len(self._bulk) >= MAX_BULK):
                continue
            lease = self.new_lease()
            job = await self._jobs.take_job(job_id, lease)
            if job is not None:
                taken += 1
                self.start(job, lease)
        return taken

    async def close(self) -> None:
        """Stops what runs; other processes go on with it at once."""
        running = [*self._bulk, *self._direct]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run_held(self, job: Job, lease: Lease) -> MeshError | None:
        self._observe("taken")
        handler = self._handlers[job.kind]
        try:
            if job.attempts > MAX_ATTEMPTS:
                await handler.fail(job, lease, JobError("INTERNAL", {"trace_id": job.trace_id}))
            else:
                await handler.run(job, lease)
        except asyncio.CancelledError:
            await self._let_go(job, lease, 0)
            raise
        except LeaseLostError:
            self._observe("lost")
            return None
        except (DatabaseError, MeshError) as error:
            self._observe("delayed")
            await self._let_go(job, lease, RETRY_MS * (job.attempts + 1))
            return error if isinstance(error, MeshError) else MeshError("UNAVAILABLE", part="mysql")
        except Exception as defect:  # noqa: BLE001 - the boundary of a job: a defect must not end the runner
            self._observe("defect")
            self._report_defect(job, defect)
            await self._let_go(job, lease, RETRY_MS * (job.attempts + 1))
            return MeshError("INTERNAL")
        self._observe("ended")
        return None

    async def _let_go(self, job: Job, lease: Lease, retry_in_ms: int) -> None:
        # When the database is away, the lease runs out by itself.
        with suppress(DatabaseError, MeshError):
            await self._jobs.let_go(job.job_id, lease, retry_in_ms)


class Jobs:
    """Makes jobs and tells how they stand."""

    def __init__(self, store: Store, jobs: JobStore, runner: JobRunner, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._jobs = jobs
        self._runner = runner
        self._clock = clock

    async def refuse_too_many(self, caller: str) -> None:
        """Refuses a caller who has enough under way.

        Raises:
            MeshError: TOO_MANY_JOBS.
        """
        if await self._jobs.open_jobs(caller, home_shard(caller), MAX_OPEN_JOBS) >= MAX_OPEN_JOBS:
            raise MeshError("TOO_MANY_JOBS", limit=str(MAX_OPEN_JOBS))

    async def create(self, call: Call, job: Job, lines: Sequence[bytes], *, encode: Callable[[Job], bytes]) -> bytes:
        """Makes a job together with the record of its call, and gives the recorded reply.

        A job whose call waits for it is run at once, to its end or to where it has to wait; any other is run by
        whichever process comes first.

        Raises:
            MeshError: IDEMPOTENCY_KEY_REUSED; or why the job has to wait, when its call waits for it.
        """
        lease = self._runner.new_lease() if job.direct else None
        created: list[Job] = []

        async def work(unit: Unit) -> bytes:
            await self._jobs.insert_job(unit, job, lines, lease)
            created[:] = [job]
            return encode(job)

        response = await run_once(self._store, call.key(home_shard(call.caller)), call.request_hash, self._clock, work)
        if created and response == encode(job):
            if lease is None:
                self._runner.wake()
            elif (waits := await asyncio.shield(self._runner.start(job, lease))) is not None:
                raise waits
        return response

    async def get(self, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            MeshError: JOB_NOT_FOUND.
        """
        job = await self._jobs.get_job(job_id)
        if job is None:
            raise MeshError("JOB_NOT_FOUND", job_id=job_id)
        return job

    async def line_errors(self, job_id: str, *, above_line: int, limit: int) -> Sequence[LineError]:
        """What is wrong with the lines of a job, by line."""
        return await self._jobs.line_errors(job_id, above_line, limit)

    async def ended(self, job_id: str, *, look_every_s: float) -> Job:
        """Waits until a job has ended, within the deadline of the call."""
        # Another process may run it, so there is no event to wait for.
        while (job := await self.get(job_id)).state is JobState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(look_every_s)
        return job

    async def coupons(self, job_id: str, limit: int) -> list[str]:
        """The coupons of the first `limit` chunks of a job, in order."""
        return [each for _, ids in await self._jobs.job_coupons(job_id, 0, limit) for each in ids]


async def held(kept: Awaitable[bool]) -> None:
    """Goes on when a job is still held.

    Raises:
        LeaseLostError: it is not.
    """
    if not await kept:
        raise LeaseLostError


async def all_or_first_error(works: Sequence[Coroutine[None, None, None]]) -> None:
    """Runs all at once; when one fails, the others are stopped and its error is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
