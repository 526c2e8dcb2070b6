"""A job: work on many coupons that outlives the call and the process that began it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

# How many coupons or lines are one step of a job. Stored jobs are cut by it, so it never changes.
CHUNK = 500


class JobKind(IntEnum):
    """What a job does; the numbers of job.kind."""

    ISSUE = 1
    IMPORT = 2


class JobState(IntEnum):
    """Where a job stands; the numbers of job.state."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3


class JobPhase(IntEnum):
    """How far a running job is; a process that takes it over begins with the phase. The numbers of job.phase."""

    # An import: nothing was written yet but the job itself. An issue begins with FILL.
    CHECK = 1
    # Codes are being claimed in the index; whether the import succeeds is decided here.
    CLAIM = 2
    # Coupons are being made; an import can't fail any more.
    FILL = 3
    # It failed, and what it did is being taken back.
    UNDO = 4


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, as a caller would be told."""

    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its row holds it. `user_id` is 0 for codes without owner; `direct` says that its call waits for it."""

    job_id: str
    kind: JobKind
    state: JobState = JobState.RUNNING
    phase: JobPhase
    direct: bool
    batch_id: str
    user_id: int = 0
    caller: str
    request_id: str
    request_hash: bytes
    trace_id: str
    total_count: int
    done_count: int = 0
    error: JobError | None = None
    line_error_count: int = 0
    attempts: int = 0
    create_time_ms: int
    finish_time_ms: int | None = None

    @property
    def chunks(self) -> int:
        """Into how many chunks the job is cut."""
        return -(-self.total_count // CHUNK)

    def chunk_size(self, chunk: int) -> int:
        """How many coupons or lines a chunk has, counted from 0; only the last one may be smaller."""
        return min(CHUNK, self.total_count - chunk * CHUNK)
