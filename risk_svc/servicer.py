"""Owns the translation between risk.v1 messages and risk control's own words."""

from collections.abc import Awaitable

from grpc import aio

from couponmesh.risk.v1 import risk_service_pb2 as pb
from couponmesh.risk.v1.risk_service_pb2_grpc import RiskServiceServicer
from meshkit import context as mesh_context
from risk_svc.app.assess_batch import AssessBatch
from risk_svc.domain.operations import Decision, Kind, Operation, Verdict

_KINDS = {
    pb.ASSESSMENT_KIND_CONSUME: Kind.CONSUME,
    pb.ASSESSMENT_KIND_BAD_CODE: Kind.BAD_CODE,
    pb.ASSESSMENT_KIND_LOOKUP: Kind.LOOKUP,
}
_VERDICTS = {Verdict.ALLOW: pb.VERDICT_ALLOW, Verdict.REJECT: pb.VERDICT_REJECT}


class RiskServicer(RiskServiceServicer):
    """Serves risk.v1.RiskService."""

    def __init__(self, assess_batch: AssessBatch) -> None:
        self._assess_batch = assess_batch

    async def AssessBatch(
        self,
        request: pb.AssessBatchRequest,
        context: aio.ServicerContext[pb.AssessBatchRequest, Awaitable[pb.AssessBatchResponse]],
    ) -> pb.AssessBatchResponse:
        """Decides on up to 128 operations at once. Errors: see the contract."""
        operations = [_operation(assessment) for assessment in request.assessments]
        decisions = await self._assess_batch(operations, remaining_s=mesh_context.current().remaining_s())
        return pb.AssessBatchResponse(
            decisions=[_message(operation, decision) for operation, decision in zip(operations, decisions, strict=True)]
        )


def _operation(assessment: pb.Assessment) -> Operation:
    return Operation(
        operation_id=assessment.operation_id,
        kind=_KINDS[assessment.kind],
        caller=assessment.caller,
        ip=assessment.client.ip,
        user_id=assessment.user_id,
        merchant_id=assessment.merchant_id,
        coupon_id=assessment.coupon_id,
        by_code=assessment.by_code,
    )


def _message(operation: Operation, decision: Decision) -> pb.Decision:
    return pb.Decision(
        operation_id=operation.operation_id,
        verdict=_VERDICTS[decision.verdict],
        rules=decision.refused_by,
        replayed=decision.replayed,
    )
