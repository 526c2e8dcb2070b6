"""The RPCs of couponmesh.coupon.v1.CouponService that bring coupons into being, and those of their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from coupon_svc.app.export_codes import ExportCodes, Reader
from coupon_svc.app.import_codes import ImportCodes
from coupon_svc.app.issue import MAX_AT_ONCE, IssueCoupons
from coupon_svc.app.jobs import Jobs
from coupon_svc.app.reading import Page, cursor_of, token_of
from coupon_svc.domain.import_lines import ImportLine, LineError
from coupon_svc.domain.job import Job
from coupon_svc.servicer import responses
from coupon_svc.servicer.requests import CallReader
from couponmesh.coupon.v1 import coupon_service_pb2 as pb
from couponmesh.coupon.v1 import job_pb2
from couponmesh.type.v1 import access_pb2
from meshkit import context as request_context
from meshkit.errors import InvalidFields

DEFAULT_ERRORS_PER_PAGE = 100
DEFAULT_LINES_PER_PAGE = 1_000
_Context = grpc.aio.ServicerContext[Any, Any]


class IssuingUseCases:
    """What these RPCs call."""

    def __init__(self, issue: IssueCoupons, import_codes: ImportCodes, export_codes: ExportCodes, jobs: Jobs) -> None:
        """One use case each."""
        self.issue = issue
        self.import_codes = import_codes
        self.export_codes = export_codes
        self.jobs = jobs


class IssuingRpcs:
    """IssueCoupons, ImportCodes, ExportCodes and GetJob."""

    _issuing: IssuingUseCases
    _calls: CallReader

    async def IssueCoupons(self, request: pb.IssueCouponsRequest, context: _Context) -> pb.IssueCouponsResponse:
        """See the contract."""
        call = self._calls.read(request, request.request_id)
        user_id = request.user_id if request.HasField("user_id") else None
        batch_id, quantity = request.batch_id, request.quantity
        if quantity > MAX_AT_ONCE:
            response = await self._issuing.issue.by_job(
                call, batch_id=batch_id, user_id=user_id, quantity=quantity, encode=_issuing
            )
            return pb.IssueCouponsResponse.FromString(response)
        issued = await self._issuing.issue(call, batch_id=batch_id, user_id=user_id, quantity=quantity)
        return pb.IssueCouponsResponse(
            coupons=[pb.IssuedCoupon(coupon_id=coupon.coupon_id, code=coupon.code) for coupon in issued]
        )

    async def ImportCodes(self, request: pb.ImportCodesRequest, context: _Context) -> pb.ImportCodesResponse:
        """See the contract."""
        if bool(request.codes) == bool(request.csv):
            raise InvalidFields([("codes", "either codes or csv must be given")])
        use_case = self._issuing.import_codes
        lines = [ImportLine(each.code, str(each.user_id) if each.HasField("user_id") else "") for each in request.codes]
        if request.validate_only:
            if request.csv:
                raise InvalidFields([("validate_only", "is for codes; a job checks all lines of csv first")])
            errors = await use_case.validate(batch_id=request.batch_id, lines=lines)
            return pb.ImportCodesResponse(line_errors=[*map(_line_error, errors)])
        call = self._calls.read(request, request.request_id)
        if request.csv:
            response = await use_case.by_job(call, batch_id=request.batch_id, csv=request.csv, encode=_importing)
        else:
            response = await use_case(call, batch_id=request.batch_id, lines=lines, encode=_imported)
        return pb.ImportCodesResponse.FromString(response)

    async def ExportCodes(self, request: job_pb2.ExportCodesRequest, context: _Context) -> job_pb2.ExportCodesResponse:
        """See the contract."""
        current = request_context.current()
        reader = Reader(
            caller=current.principal.client_id,
            subject=current.principal.subject,
            ip=current.edge_ip,
            trace_id=current.trace_id,
            masked=access_pb2.ROLE_OPERATOR not in current.principal.roles,
        )
        page = await self._issuing.export_codes(
            reader,
            batch_id=request.batch_id,
            job_id=request.job_id,
            page=Page(request.page_size or DEFAULT_LINES_PER_PAGE, request.page_token),
        )
        return job_pb2.ExportCodesResponse(
            csv=page.csv, line_count=page.line_count, next_page_token=page.next_page_token
        )

    async def GetJob(self, request: job_pb2.GetJobRequest, context: _Context) -> job_pb2.GetJobResponse:
        """See the contract."""
        job = await self._issuing.jobs.get(request.job_id)
        size = request.page_size or DEFAULT_ERRORS_PER_PAGE
        above = int(cursor_of(request.page_token, "job", request.job_id) or 0)
        errors = await self._issuing.jobs.line_errors(request.job_id, above_line=above, limit=size + 1)
        shown = errors[:size]
        more = len(errors) > size
        return job_pb2.GetJobResponse(
            job=job_message(job),
            line_errors=[*map(_line_error, shown)],
            next_page_token=token_of(str(shown[-1].line), "job", request.job_id) if more else "",
        )


def job_message(job: Job) -> job_pb2.Job:
    """A job as Job."""
    message = job_pb2.Job(
        job_id=job.job_id,
        kind=job_pb2.JobKind.ValueType(int(job.kind)),
        state=job_pb2.JobState.ValueType(int(job.state)),
        batch_id=job.batch_id,
        total_count=job.total_count,
        done_count=job.done_count,
        line_error_count=job.line_error_count,
        caller=job.caller,
        request_id=job.request_id,
        create_time=responses.timestamp(job.create_time_ms),
    )
    if job.error is not None:
        message.error_reason = job.error.reason
        message.error_metadata.update(job.error.metadata)
    if job.finish_time_ms is not None:
        message.finish_time.CopyFrom(responses.timestamp(job.finish_time_ms))
    return message


def _line_error(error: LineError) -> job_pb2.LineError:
    return job_pb2.LineError(line=error.line, field=error.field, reason=error.reason, problem=error.problem)


def _issuing(job: Job) -> bytes:
    return pb.IssueCouponsResponse(job=job_message(job)).SerializeToString(deterministic=True)


def _importing(job: Job) -> bytes:
    return pb.ImportCodesResponse(job=job_message(job)).SerializeToString(deterministic=True)


def _imported(coupon_ids: Sequence[str]) -> bytes:
    return pb.ImportCodesResponse(coupon_ids=coupon_ids).SerializeToString(deterministic=True)
