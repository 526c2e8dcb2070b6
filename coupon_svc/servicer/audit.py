"""The RPCs of couponmesh.coupon.v1.CouponService about the journal."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from coupon_svc.app.audit_events import AuditEvents, EventFilter, EventScope
from coupon_svc.app.reading import Page, cursor_of, token_of
from coupon_svc.app.verify_audit import Scope, Step, VerifyAuditTrail
from coupon_svc.domain.audit import Finding
from coupon_svc.servicer import responses
from couponmesh.coupon.v1 import audit_pb2, coupon_service_pb2
from meshkit import context as request_context

DEFAULT_EVENTS_PER_PAGE = 100
_Context = grpc.aio.ServicerContext[Any, Any]


class AuditRpcs:
    """A part of CouponServicer."""

    _events: AuditEvents
    _verify: VerifyAuditTrail

    async def ListAuditEvents(
        self, request: coupon_service_pb2.ListAuditEventsRequest, context: _Context
    ) -> coupon_service_pb2.ListAuditEventsResponse:
        """See the contract."""
        rows, token = await self._events(
            EventScope(
                coupon_id=request.coupon_id,
                user_id=request.user_id,
                transaction_id=request.transaction_id,
                shard=request.shard if request.HasField("shard") else None,
            ),
            EventFilter(
                kinds=frozenset(request.kinds),
                from_ms=_instant_ms(request.from_time) if request.HasField("from_time") else None,
                to_ms=_instant_ms(request.to_time) if request.HasField("to_time") else None,
                caller=request.caller,
                request_id=request.request_id,
                transaction_id=request.transaction_id,
            ),
            Page(request.page_size or DEFAULT_EVENTS_PER_PAGE, request.page_token),
        )
        return coupon_service_pb2.ListAuditEventsResponse(
            events=[*map(responses.audit_event_message, rows)], next_page_token=token
        )

    async def VerifyAuditTrail(
        self, request: audit_pb2.VerifyAuditTrailRequest, context: _Context
    ) -> AsyncGenerator[audit_pb2.VerifyAuditTrailResponse, None]:
        """See the contract."""
        scope = _scope(request)
        cursor = cursor_of(request.resume_token, "verify", scope) or ""
        async for step in self._verify(scope, cursor=cursor, deadline=request_context.current().deadline):
            yield _step_message(step, token_of(step.cursor, "verify", scope) if step.cursor else "")


def _scope(request: audit_pb2.VerifyAuditTrailRequest) -> Scope:
    given = request.WhichOneof("scope")
    if given == "coupon_id":
        return Scope.of_coupon(request.coupon_id)
    return Scope.of_user(request.user_id) if given == "user_id" else Scope(request.shard)


def _step_message(step: Step, resume_token: str) -> audit_pb2.VerifyAuditTrailResponse:
    progress = step.progress
    return audit_pb2.VerifyAuditTrailResponse(
        findings=[*map(_finding_message, step.findings)],
        progress=audit_pb2.AuditProgress(
            chains=progress.chains,
            rows=progress.rows,
            transactions=progress.transactions,
            roots=progress.roots,
            findings=progress.findings,
        ),
        resume_token=resume_token,
        complete=step.complete,
    )


def _finding_message(finding: Finding) -> audit_pb2.AuditFinding:
    return audit_pb2.AuditFinding(
        kind=audit_pb2.AuditFindingKind.ValueType(int(finding.kind)),
        shard=finding.shard,
        coupon_id=finding.coupon_id,
        seq=finding.seq,
        last_seq=finding.last_seq,
        transaction_id=finding.transaction_id,
        root_number=finding.root_number,
        differences=[
            audit_pb2.AuditDifference(field=each.field, stored=each.stored, expected=each.expected)
            for each in finding.differences
        ],
        detail=finding.detail,
    )


def _instant_ms(moment: Timestamp) -> int:
    return moment.seconds * 1000 + moment.nanos // 1_000_000
