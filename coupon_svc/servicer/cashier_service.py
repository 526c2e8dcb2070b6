"""couponmesh.coupon.v1.CashierService: the plain REST endpoint of cashier systems."""

from __future__ import annotations

import re
import uuid
from typing import Any

import grpc

from coupon_svc.app.consume import ConsumeCommand, ConsumeCoupon
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.domain.money import minor_from_yuan
from coupon_svc.servicer import responses
from coupon_svc.servicer.requests import CallReader
from couponmesh.coupon.v1 import cashier_service_pb2 as pb
from couponmesh.coupon.v1.cashier_service_pb2_grpc import CashierServiceServicer
from meshkit import context as request_context
from meshkit.errors import InvalidFields, MeshError

_REQUEST_ID = re.compile(r"[!-~]{1,64}")


class CashierServicer(CashierServiceServicer):
    """Consumes by code, with the amount in yuan."""

    def __init__(self, directory: CouponDirectory, consume: ConsumeCoupon, calls: CallReader) -> None:
        """The same use case as CouponService.ConsumeCoupon."""
        self._directory = directory
        self._consume = consume
        self._calls = calls

    async def Consume(
        self, request: pb.ConsumeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ConsumeResponse:
        """See the contract."""
        request_id = _request_id(request.request_id, request_context.current().idempotency_key)
        # The key decides what is a repeat, wherever it was written.
        request.request_id = request_id
        call = self._calls.read(request, request_id, request.client)
        command = ConsumeCommand(
            call=call,
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            amount_minor=minor_from_yuan(request.amount),
            by_code=True,
            encode=responses.cashier_consume_response,
        )
        facts = await self._directory.by_code(request.coupon_code, call)
        response = await self._consume(command, facts, deadline=request_context.current().deadline)
        return pb.ConsumeResponse.FromString(response)


def _request_id(field: str, header: str) -> str:
    """The field or the header, which must not differ; without either, an id of this call alone."""
    if field and header and field != header:
        raise MeshError("IDEMPOTENCY_KEY_CONFLICT")
    if header and not _REQUEST_ID.fullmatch(header):
        raise InvalidFields([("Idempotency-Key", "must be 1 to 64 visible ASCII characters")])
    return field or header or uuid.uuid4().hex
