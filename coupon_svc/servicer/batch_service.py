"""couponmesh.coupon.v1.BatchService."""

from __future__ import annotations

from typing import Any

import grpc

from coupon_svc.app.batches import Batches
from coupon_svc.app.recall import RecallBatch
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.terms import Terms
from coupon_svc.servicer.recall import RecallRpcs
from coupon_svc.servicer.requests import CallReader, caps_from, terms_from
from coupon_svc.servicer.responses import batch_message, block_scope_from
from couponmesh.coupon.v1 import batch_service_pb2 as pb
from couponmesh.coupon.v1.batch_service_pb2_grpc import BatchServiceServicer

DEFAULT_CODE_LENGTH = 12


class BatchServicer(RecallRpcs, BatchServiceServicer):
    """Batches and their terms."""

    def __init__(self, batches: Batches, recall: RecallBatch, calls: CallReader) -> None:
        """All use cases arrive here."""
        self._batches = batches
        self._recall = recall
        self._calls = calls

    async def CreateBatch(
        self,
        request: pb.CreateBatchRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.CreateBatchResponse:
        """See the contract."""
        response = await self._batches.create(
            self._calls.read(request, request.request_id),
            name=request.name,
            terms=terms_from(request.terms),
            total_quantity=request.total_quantity if request.HasField("total_quantity") else None,
            code_length=request.code_length or DEFAULT_CODE_LENGTH,
            caps=caps_from(request.caps),
            encode=_created,
        )
        return pb.CreateBatchResponse.FromString(response)

    async def GetBatch(
        self, request: pb.GetBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetBatchResponse:
        """See the contract."""
        batch, terms = await self._batches.get(request.batch_id)
        return pb.GetBatchResponse(batch=batch_message(batch, terms, await self._recall.progress(batch)))

    async def BlockBatch(
        self,
        request: pb.BlockBatchRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.BlockBatchResponse:
        """See the contract."""
        response = await self._batches.block(
            self._calls.read(request, request.request_id),
            batch_id=request.batch_id,
            scope=block_scope_from(request.block_scope),
            encode=_blocked,
        )
        return pb.BlockBatchResponse.FromString(response)


def _created(batch: Batch, terms: Terms) -> bytes:
    return pb.CreateBatchResponse(batch=batch_message(batch, terms)).SerializeToString(deterministic=True)


def _blocked(batch: Batch, terms: Terms) -> bytes:
    return pb.BlockBatchResponse(batch=batch_message(batch, terms)).SerializeToString(deterministic=True)
