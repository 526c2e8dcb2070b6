"""What jobs, exports and the recovery of activations need from the world beyond `ports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coupon_svc.app.ports import CodeKey, IndexedCode, RequestKey, StoredCoupon, Unit
from coupon_svc.domain.import_lines import LineError
from coupon_svc.domain.job import Job, JobError, JobPhase, JobState


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one process to run a job for a while; past it, another may take over."""

    holder: bytes
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """One page of codes that somebody is about to be given."""

    batch_id: str
    job_id: str | None
    caller: str
    subject: str
    ip: str
    masked: bool
    line_count: int
    first_coupon_id: str
    last_coupon_id: str
    trace_id: str
    time_ms: int


class JobStore(Protocol):
    """Jobs and what belongs to them. A job lives in its caller's home shard, which its id carries."""

    # --- a job's life ---

    async def insert_job(self, unit: Unit, job: Job, lines: Sequence[bytes], lease: Lease | None) -> None:
        """Adds a job with its sealed lines, a chunk each; without a lease any process may take it at once."""

    async def open_jobs(self, caller: str, shard: int, limit: int) -> int:
        """How many jobs of a caller are under way, counted up to `limit`."""

    async def get_job(self, job_id: str) -> Job | None:
        """One job."""

    async def due_jobs(self, database: str, limit: int, *, direct_only: bool) -> Sequence[tuple[str, bool]]:
        """(job id, direct) of running jobs of one database that nobody holds, those that wait longest first."""

    async def take_job(self, job_id: str, lease: Lease) -> Job | None:
        """Takes a running job that nobody holds; None when somebody does, or it ended."""

    async def advance(self, job_id: str, lease: Lease, phase: JobPhase, done_count: int) -> bool:
        """Notes progress and renews the lease; False when another process holds the job by now."""

    async def note_chunk(self, job_id: str, lease: Lease, chunk: int, coupon_ids: Sequence[str], done: int) -> bool:
        """Notes what a chunk made together with progress; False when another process holds the job by now."""

    async def let_go(self, job_id: str, lease: Lease, retry_in_ms: int) -> None:
        """Gives the lease back; any process may take the job after `retry_in_ms`."""

    async def begin_undo(self, job_id: str, lease: Lease, error: JobError, lines: Sequence[LineError]) -> bool:
        """Notes why a job fails, before anything is taken back; False as for `advance`."""

    async def finish(
        self,
        job_id: str,
        lease: Lease,
        state: JobState,
        done_count: int,
        now_ms: int,
        *,
        forget: RequestKey | None = None,
    ) -> bool:
        """Ends a job, drops its lines and, with `forget`, the record of its request; False as for `advance`."""

    # --- what belongs to it ---

    async def job_lines(self, job_id: str, chunk: int) -> bytes:
        """The sealed lines of a chunk."""

    async def done_chunks(self, job_id: str) -> set[int]:
        """The chunks whose coupons are noted."""

    async def job_coupons(self, job_id: str, first_chunk: int, limit: int) -> Sequence[tuple[int, Sequence[str]]]:
        """(chunk, coupon ids) from `first_chunk` on."""

    async def line_errors(self, job_id: str, above_line: int, limit: int) -> Sequence[LineError]:
        """What is wrong with the lines of a job, by line."""

    # --- imports ---

    async def hold_gates(self, unit: Unit, made_by: bytes, shards: set[int], now_ms: int) -> bool:
        """Makes sure of the gates of an import and holds them until commit; False when one is not filling any more."""

    async def set_gates(self, unit: Unit, made_by: bytes, shards: set[int], state: int, now_ms: int) -> None:
        """Sets gates in one database: 2 shows the codes of the import, 3 refuses further ones."""

    async def claimed(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, IndexedCode]:
        """Whole index entries in one database, whether their import is open or not."""

    async def purge_gates(self, database: str, before_ms: int, limit: int) -> int:
        """Removes at most `limit` gates of imports that ended before a time, and gives how many."""

    async def drop_claims(self, unit: Unit, keys: Sequence[CodeKey], made_by: bytes) -> None:
        """Takes back index entries of one database that `made_by` made."""

    async def frozen_users(self, users: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Of (shard, user_id) pairs of one database those whose accounts are frozen."""

    # --- the draw of a job ---

    async def lower_draw(self, unit: Unit, batch_id: str, key: RequestKey, drawn: int, kept: int) -> None:
        """Lowers what a request drew from a locked batch from `drawn` to `kept`."""

    # --- short codes ---

    async def code_room(self, shards: Sequence[int], code_length: int, limit: int) -> Mapping[int, int]:
        """How many more codes of a length each shard of one database may have, without locks."""


class MarkStore(Protocol):
    """Activations that were marked and not closed yet."""

    async def note_mark(self, unit: Unit, shard: int, coupon_id: str, now_ms: int) -> None:
        """Notes an activation together with its mark."""

    async def drop_mark(self, unit: Unit, shard: int, coupon_id: str) -> None:
        """Forgets an activation together with its close."""

    async def marks(self, database: str, before_ms: int, limit: int) -> Sequence[str]:
        """Unactivated coupons of one database that were marked before a time, oldest first."""


class ExportStore(Protocol):
    """Reads a batch's coupons page by page, and the journal of who was given them."""

    async def batch_coupons(self, batch_id: str, after: tuple[int, str] | None, limit: int) -> Sequence[StoredCoupon]:
        """Coupons of a batch after (shard, coupon_id) in an order that stays the same."""

    async def coupons_by_id(self, coupon_ids: Sequence[str]) -> Mapping[str, StoredCoupon]:
        """Coupons of any shards."""

    async def record_export(self, unit: Unit, record: ExportRecord) -> None:
        """Appends to the export journal of a locked batch."""


class LineSeal(Protocol):
    """Hides the lines of an import while they wait."""

    def seal_lines(self, lines: bytes, job_id: str, chunk: int) -> bytes:
        """Ciphertext, bound to its job and chunk."""

    def open_lines(self, sealed: bytes, job_id: str, chunk: int) -> bytes:
        """The lines."""
