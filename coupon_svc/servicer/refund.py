"""CouponService's RPCs that refund, and the one that shows transactions with their refunds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from coupon_svc.app.giving_back import Refunded, RefundedTransaction
from coupon_svc.app.reading import Reading
from coupon_svc.app.refund_ports import RefundRow
from coupon_svc.app.refunds import Refunds
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.refund import WantedLine, by_line_with_cash
from coupon_svc.servicer.requests import CallReader, amount_minor
from coupon_svc.servicer.responses import money, timestamp, transaction_message
from couponmesh.coupon.v1 import coupon_pb2, refund_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as pb
from meshkit import context as request_context
from meshkit.errors import InvalidFields, MeshError

_Context = grpc.aio.ServicerContext[Any, Any]


class RefundRpcs:
    """A part of `CouponServicer`, which sets the attributes."""

    _calls: CallReader
    _refunds: Refunds
    _reading: Reading

    async def RefundTransaction(
        self, request: refund_pb2.RefundTransactionRequest, context: _Context
    ) -> refund_pb2.RefundTransactionResponse:
        """See the contract."""
        current = request_context.current()
        response = await self._refunds.transaction(
            self._calls.read(request, request.request_id),
            transaction_id=request.transaction_id,
            amount_minor=amount_minor(request.amount, "amount") if request.HasField("amount") else None,
            only_merchant=current.principal.merchant_id if current.stored_ownership else "",
            encode=_transaction_refunded,
        )
        return refund_pb2.RefundTransactionResponse.FromString(response)

    async def RefundOrder(
        self, request: refund_pb2.RefundOrderRequest, context: _Context
    ) -> refund_pb2.RefundOrderResponse:
        """See the contract."""
        response = await self._refunds.order(
            self._calls.read(request, request.request_id),
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            lines=_wanted(request.lines),
            encode=_order_refunded,
        )
        return refund_pb2.RefundOrderResponse.FromString(response)

    async def GetTransaction(self, request: pb.GetTransactionRequest, context: _Context) -> pb.GetTransactionResponse:
        """See the contract."""
        current = request_context.current()
        order = request.merchant_order if request.HasField("merchant_order") else None
        only_merchant = current.principal.merchant_id if current.stored_ownership else ""
        try:
            row = await self._reading.transaction(
                transaction_id=request.transaction_id,
                caller=current.principal.client_id,
                request_id=request.request_id,
                order=(order.merchant_id, order.order_id) if order else None,
                only_merchant=only_merchant,
            )
        except MeshError:
            refund = await self._refunds.refund(
                refund_id=request.transaction_id,
                caller=current.principal.client_id,
                request_id=request.request_id,
                only_merchant=only_merchant,
            )
            if refund is None:
                raise
            return pb.GetTransactionResponse(refunds=[_refund_message(refund)])
        transaction, refunds = await self._refunds.of_transaction(row)
        return pb.GetTransactionResponse(
            transaction=_transaction_message(transaction), refunds=[*map(_refund_message, refunds)]
        )


def _wanted(lines: Sequence[refund_pb2.OrderLineRefund]) -> list[WantedLine]:
    if len({line.line_id for line in lines}) != len(lines):
        raise InvalidFields([("lines", "names a line twice")])
    return [
        WantedLine(
            line.line_id,
            amount_minor(line.amount, f"lines[{number}].amount") if line.HasField("amount") else None,
        )
        for number, line in enumerate(lines)
    ]


def _transaction_message(refunded: RefundedTransaction) -> coupon_pb2.Transaction:
    return transaction_message(
        refunded.transaction, refunded_minor=refunded.refunded_minor, refundable_minor=refunded.refundable_minor
    )


def _refund_message(refund: RefundRow) -> refund_pb2.Refund:
    lines = by_line_with_cash(refund.cells)
    return refund_pb2.Refund(
        transaction_id=refund.refund_id,
        merchant_id=refund.merchant_id,
        order_id=refund.order_id,
        amount=money(sum(whole for whole, _ in lines.values())),
        cash=money(sum(cash for _, cash in lines.values())),
        coupons=[
            refund_pb2.RefundedCoupon(
                original_transaction_id=part.original_transaction_id,
                coupon_id=part.coupon_id,
                amount=money(part.amount_minor),
                replacement_coupon_id=part.replacement_coupon_id or "",
            )
            for part in refund.coupons
        ],
        lines=[
            refund_pb2.RefundedLine(line_id=line_id, amount=money(whole), cash=money(cash))
            for line_id, (whole, cash) in lines.items()
        ],
        request_id=refund.request_id,
        refund_time=timestamp(refund.refund_time_ms),
    )


def _coupon_message(coupon: Coupon) -> refund_pb2.CouponAfterRefund:
    return refund_pb2.CouponAfterRefund(
        coupon_id=coupon.coupon_id,
        status=coupon_pb2.CouponStatus.ValueType(int(coupon.status)),
        balance=money(coupon.balance_minor),
        expires_at=timestamp(coupon.expires_at_ms),
    )


def _transaction_refunded(refunded: Refunded) -> bytes:
    (transaction,), (coupon,) = refunded.transactions, refunded.coupons
    return refund_pb2.RefundTransactionResponse(
        refund=_refund_message(refunded.refund),
        transaction=_transaction_message(transaction),
        coupon=_coupon_message(coupon),
    ).SerializeToString(deterministic=True)


def _order_refunded(refunded: Refunded) -> bytes:
    return refund_pb2.RefundOrderResponse(
        refund=_refund_message(refunded.refund),
        transactions=[*map(_transaction_message, refunded.transactions)],
        coupons=[*map(_coupon_message, refunded.coupons)],
        left=[
            refund_pb2.RefundableLine(line_id=line_id, amount=money(whole), cash=money(cash))
            for line_id, (whole, cash) in by_line_with_cash(refunded.left.items()).items()
        ],
    ).SerializeToString(deterministic=True)
