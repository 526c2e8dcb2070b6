"""Gives the codes of a batch, or of a job, as CSV: page by page, each journaled before it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coupon_svc.app.job_ports import ExportRecord, ExportStore, JobStore
from coupon_svc.app.pace import Pace
from coupon_svc.app.ports import Clock, CodeBook, Store, StoredCoupon
from coupon_svc.app.reading import Page, cursor_of, mask, token_of
from coupon_svc.app.requests import refuse_moved
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.job import CHUNK, JobState
from coupon_svc.domain.routing import id_shard
from meshkit.errors import MeshError

HEADER = "coupon_id,code,status\n"


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is given codes; `masked` hides all but their last characters."""

    caller: str
    subject: str
    ip: str
    trace_id: str
    masked: bool


@dataclass(frozen=True, slots=True)
class ExportPage:
    """One page of the file; `csv` holds codes and stays out of the repr."""

    csv: str
    line_count: int
    next_page_token: str

    def __repr__(self) -> str:
        return f"ExportPage(line_count={self.line_count})"


class ExportCodes:
    """The use case."""

    def __init__(self, *, store: Store, exports: ExportStore, jobs: JobStore, codes: CodeBook, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._exports = exports
        self._jobs = jobs
        self._codes = codes
        self._clock = clock

    async def __call__(self, reader: Reader, *, batch_id: str, job_id: str, page: Page) -> ExportPage:
        """One page.

        Raises:
            MeshError: BATCH_NOT_FOUND, JOB_NOT_FOUND, JOB_NOT_DONE, PAGE_TOKEN_INVALID.
        """
        if await self._store.get_batch(batch_id) is None:
            raise MeshError("BATCH_NOT_FOUND", batch_id=batch_id)
        cursor = cursor_of(page.token, "export", batch_id, job_id)
        if job_id:
            coupons, following = await self._of_job(batch_id, job_id, int(cursor or 0), page.size)
        else:
            coupons, following = await self._of_batch(batch_id, cursor, page.size)
        await self._record(reader, batch_id, job_id, coupons)
        lines = [] if page.token else [HEADER]
        pace = Pace()
        for stored in coupons:
            lines.append(self._line(stored, masked=reader.masked))
            await pace.breathe()
        token = token_of(following, "export", batch_id, job_id) if following else ""
        return ExportPage("".join(lines), len(coupons), token)

    async def _of_batch(self, batch_id: str, cursor: str | None, size: int) -> tuple[Sequence[StoredCoupon], str]:
        after = None if cursor is None else (id_shard(cursor), cursor)
        found = await self._exports.batch_coupons(batch_id, after, size + 1)
        shown = found[:size]
        return shown, shown[-1].coupon.coupon_id if len(found) > size else ""

    async def _of_job(self, batch_id: str, job_id: str, first: int, size: int) -> tuple[Sequence[StoredCoupon], str]:
        """Coupons from position `first` on; a position is chunk * CHUNK plus that in the chunk."""
        job = await self._jobs.get_job(job_id)
        if job is None or job.batch_id != batch_id:
            raise MeshError("JOB_NOT_FOUND", job_id=job_id)
        if job.state is JobState.RUNNING:
            raise MeshError("JOB_NOT_DONE", job_id=job_id)
        chunks = await self._jobs.job_coupons(job_id, first // CHUNK, size // CHUNK + 2)
        positions = [
            (chunk * CHUNK + offset, coupon_id)
            for chunk, ids in chunks
            for offset, coupon_id in enumerate(ids)
            if chunk * CHUNK + offset >= first
        ]
        stored = await self._exports.coupons_by_id([coupon_id for _, coupon_id in positions[:size]])
        # One that got its lasting id since shows under that one, in the same place.
        lasting = await self._exports.coupons_by_id(
            [
                each.binding.coupon_id
                for each in stored.values()
                if each.binding is not None and each.coupon.status is not CouponStatus.UNACTIVATED
            ]
        )
        shown = []
        for _, coupon_id in positions[:size]:
            each = stored[coupon_id]
            shown.append(lasting.get(each.binding.coupon_id, each) if each.binding is not None else each)
        return shown, str(positions[size][0]) if len(positions) > size else ""

    async def _record(self, reader: Reader, batch_id: str, job_id: str, coupons: Sequence[StoredCoupon]) -> None:
        shard = id_shard(batch_id)
        record = ExportRecord(
            batch_id=batch_id,
            job_id=job_id or None,
            caller=reader.caller,
            subject=reader.subject,
            ip=reader.ip,
            masked=reader.masked,
            line_count=len(coupons),
            first_coupon_id=coupons[0].coupon.coupon_id if coupons else "",
            last_coupon_id=coupons[-1].coupon.coupon_id if coupons else "",
            trace_id=reader.trace_id,
            time_ms=self._clock(),
        )
        async with self._store.unit(shard) as unit:
            await refuse_moved(unit, {shard})
            # The batch's row keeps the journal of its exports in order.
            await unit.lock_batch(batch_id)
            await self._exports.record_export(unit, record)

    def _line(self, stored: StoredCoupon, *, masked: bool) -> str:
        coupon = stored.coupon
        code = self._codes.open(stored.code_sealed, coupon.coupon_id)
        status = coupon.status_at(self._clock())
        return f"{coupon.coupon_id},{mask(code) if masked else code},{status.name}\n"
