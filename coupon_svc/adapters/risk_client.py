"""Risk control behind the `RiskGate` port: risk_svc's AssessBatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

from coupon_svc.app.ports import RiskAbsentError, RiskAnswer, RiskQuestion
from coupon_svc.domain.money import CURRENCY
from couponmesh.risk.v1 import risk_service_pb2 as pb
from couponmesh.risk.v1.risk_service_pb2_grpc import RiskServiceStub
from couponmesh.type.v1 import client_context_pb2, money_pb2

_KINDS = {
    "CONSUME": pb.ASSESSMENT_KIND_CONSUME,
    "BAD_CODE": pb.ASSESSMENT_KIND_BAD_CODE,
    "LOOKUP": pb.ASSESSMENT_KIND_LOOKUP,
}
_MAX_BATCH = 128


class GrpcRiskGate:
    """Asks risk_svc, with a deadline of its own."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline_s: float, observe_absence: Callable[[], None]) -> None:
        """`observe_absence` is told of each call that was not answered."""
        self._stub = RiskServiceStub(channel)
        self._deadline_s = deadline_s
        self._observe_absence = observe_absence

    async def assess(self, questions: Sequence[RiskQuestion]) -> Sequence[RiskAnswer]:
        """See `RiskGate.assess`."""
        if len(questions) > _MAX_BATCH:
            raise ValueError(f"at most {_MAX_BATCH} questions fit one AssessBatch, not {len(questions)}")
        request = pb.AssessBatchRequest(assessments=[_assessment(question) for question in questions])
        try:
            response = await self._stub.AssessBatch(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            self._observe_absence()
            raise RiskAbsentError(error.code().name) from error
        return [
            RiskAnswer(decision.verdict == pb.VERDICT_ALLOW, tuple(decision.rules)) for decision in response.decisions
        ]


def _assessment(question: RiskQuestion) -> pb.Assessment:
    client = question.client
    return pb.Assessment(
        operation_id=question.operation_id,
        kind=_KINDS[question.kind],
        caller=question.caller,
        client=client_context_pb2.ClientContext(
            ip=client.ip,
            device_id=client.device_id,
            phone=client.phone,
            channel=client.channel,
            store_id=client.store_id,
            terminal_id=client.terminal_id,
        ),
        user_id=question.user_id,
        merchant_id=question.merchant_id,
        batch_id=question.batch_id,
        coupon_id=question.coupon_id,
        amount=money_pb2.Money(currency_code=CURRENCY, amount_minor=question.amount_minor),
        by_code=question.by_code,
    )
