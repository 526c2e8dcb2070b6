"""BatchService's RPC that recalls."""

from __future__ import annotations

from typing import Any

import grpc

from coupon_svc.app.recall import RecallBatch, RecallView
from coupon_svc.domain.batch import Stake
from coupon_svc.domain.money import CURRENCY
from coupon_svc.servicer import responses
from coupon_svc.servicer.requests import CallReader
from couponmesh.coupon.v1 import batch_pb2, coupon_pb2
from couponmesh.coupon.v1 import recall_pb2 as pb
from meshkit.errors import MeshError


class RecallRpcs:
    """A part of `BatchServicer`, which sets the attributes."""

    _calls: CallReader
    _recall: RecallBatch

    async def RecallBatch(
        self, request: pb.RecallBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RecallBatchResponse:
        """See the contract."""
        response = await self._recall(
            self._calls.read(request, request.request_id),
            batch_id=request.batch_id,
            reason=request.reason,
            confirmed=_stake(request.expected_stake) if request.HasField("expected_stake") else None,
            encode=_encoded,
        )
        return pb.RecallBatchResponse.FromString(response)


def _stake(message: batch_pb2.RecallStake) -> Stake:
    if message.money.currency_code != CURRENCY:
        raise MeshError(
            "CURRENCY_NOT_SUPPORTED", currency_code=message.money.currency_code, field="expected_stake.money"
        )
    return Stake(message.coupons, message.money.amount_minor, unbounded=message.unbounded)


def _encoded(view: RecallView) -> bytes:
    message = pb.RecallBatchResponse(
        batch=responses.batch_message(view.batch, view.terms, view.recall),
        stake=responses.stake_message(view.stake),
        counts=[
            pb.RecallStatusCount(
                status=coupon_pb2.CouponStatus.ValueType(int(status)),
                coupons=count.coupons,
                balance=responses.money(count.balance_minor),
            )
            for status, count in sorted(view.counts.items())
        ],
    )
    return message.SerializeToString(deterministic=True)
