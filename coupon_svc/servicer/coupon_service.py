"""couponmesh.coupon.v1.CouponService."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from coupon_svc.app.activate import ActivateCommand, ActivateCoupon
from coupon_svc.app.audit_events import AuditEvents
from coupon_svc.app.consume import ConsumeCommand, ConsumeCoupon
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.freezing import Freezing
from coupon_svc.app.import_codes import ImportCodes, ImportLine
from coupon_svc.app.issue import IssueCoupons
from coupon_svc.app.ports import StoredCoupon
from coupon_svc.app.quoting import Quoting
from coupon_svc.app.reading import CouponView, Page, Reading, mask
from coupon_svc.app.refunds import Refunds
from coupon_svc.app.verify_audit import VerifyAuditTrail
from coupon_svc.domain.order import Order
from coupon_svc.domain.terms import Terms
from coupon_svc.servicer import responses
from coupon_svc.servicer.audit import AuditRpcs
from coupon_svc.servicer.freeze import FreezeRpcs
from coupon_svc.servicer.quote import QuoteRpcs
from coupon_svc.servicer.refund import RefundRpcs
from coupon_svc.servicer.requests import CallReader, amount_minor, lines_from
from coupon_svc.servicer.reservations import ReservationServicer, ReservationUseCases
from couponmesh.coupon.v1 import coupon_service_pb2 as pb
from couponmesh.coupon.v1.coupon_service_pb2_grpc import CouponServiceServicer
from meshkit import context as request_context

DEFAULT_COUPONS_PER_PAGE = 50
# Handlers need nothing of gRPC's own context: identity and deadline are in the request context.
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class CouponUseCases:
    """What the service calls."""

    directory: CouponDirectory
    issue: IssueCoupons
    import_codes: ImportCodes
    activate: ActivateCoupon
    consume: ConsumeCoupon
    reading: Reading
    reservations: ReservationUseCases
    freezing: Freezing
    refunds: Refunds
    audit_events: AuditEvents
    verify_audit: VerifyAuditTrail
    quoting: Quoting


class CouponServicer(ReservationServicer, FreezeRpcs, RefundRpcs, AuditRpcs, QuoteRpcs, CouponServiceServicer):
    """Coupons over their life."""

    def __init__(self, use_cases: CouponUseCases, calls: CallReader) -> None:
        """One use case per RPC."""
        ReservationServicer.__init__(self, use_cases.directory, use_cases.reservations, calls)
        self._do = use_cases
        self._events = use_cases.audit_events
        self._verify = use_cases.verify_audit
        self._calls = calls
        self._freezing = use_cases.freezing
        self._reading = use_cases.reading
        self._refunds = use_cases.refunds
        self._quoting = use_cases.quoting

    async def IssueCoupons(self, request: pb.IssueCouponsRequest, context: _Context) -> pb.IssueCouponsResponse:
        """See the contract."""
        issued = await self._do.issue(
            self._calls.read(request, request.request_id),
            batch_id=request.batch_id,
            user_id=request.user_id if request.HasField("user_id") else None,
            quantity=request.quantity,
        )
        return pb.IssueCouponsResponse(
            coupons=[pb.IssuedCoupon(coupon_id=coupon.coupon_id, code=coupon.code) for coupon in issued]
        )

    async def ImportCodes(self, request: pb.ImportCodesRequest, context: _Context) -> pb.ImportCodesResponse:
        """See the contract."""
        response = await self._do.import_codes(
            self._calls.read(request, request.request_id),
            batch_id=request.batch_id,
            lines=[ImportLine(line.code, line.user_id if line.HasField("user_id") else None) for line in request.codes],
            encode=_imported,
        )
        return pb.ImportCodesResponse.FromString(response)

    async def ActivateCoupon(self, request: pb.ActivateCouponRequest, context: _Context) -> pb.ActivateCouponResponse:
        """See the contract."""

        def encode(stored: StoredCoupon, terms: Terms) -> bytes:
            view = CouponView(stored, terms, stored.coupon.status, mask(request.code))
            return pb.ActivateCouponResponse(coupon=responses.coupon_message(view)).SerializeToString(
                deterministic=True
            )

        call = self._calls.read(request, request.request_id, request.client)
        response = await self._do.activate(ActivateCommand(call, request.code, request.user_id, encode))
        return pb.ActivateCouponResponse.FromString(response)

    async def GetCoupon(self, request: pb.GetCouponRequest, context: _Context) -> pb.GetCouponResponse:
        """See the contract."""
        current = request_context.current()
        only_user = int(current.principal.subject) if current.stored_ownership else None
        view = await self._do.reading.coupon(request.coupon_id, only_user=only_user)
        return pb.GetCouponResponse(coupon=responses.coupon_message(view))

    async def ListCoupons(self, request: pb.ListCouponsRequest, context: _Context) -> pb.ListCouponsResponse:
        """See the contract."""
        views, token = await self._do.reading.coupons(
            request.user_id,
            status=request.status or None,
            page=Page(request.page_size or DEFAULT_COUPONS_PER_PAGE, request.page_token),
        )
        return pb.ListCouponsResponse(coupons=[*map(responses.coupon_message, views)], next_page_token=token)

    async def ValidateCoupon(self, request: pb.ValidateCouponRequest, context: _Context) -> pb.ValidateCouponResponse:
        """See the contract."""
        validation = await self._do.reading.validate(
            self._calls.read(request, "", request.client),
            coupon_id=request.coupon_id,
            code=request.code,
            order=Order(
                request.merchant_id,
                amount_minor(request.amount, "amount"),
                lines_from(request.lines, request.merchant_id),
            ),
        )
        return pb.ValidateCouponResponse(
            coupon=responses.coupon_message(validation.view),
            usable=not validation.refusal,
            refusal_reason=validation.refusal,
            deduction=responses.money(validation.deduction_minor),
            payable=responses.money(validation.payable_minor),
        )

    async def ConsumeCoupon(self, request: pb.ConsumeCouponRequest, context: _Context) -> pb.ConsumeCouponResponse:
        """See the contract."""
        call = self._calls.read(request, request.request_id, request.client)
        command = ConsumeCommand(
            call=call,
            merchant_id=request.merchant_id,
            order_id=request.order_id,
            amount_minor=amount_minor(request.amount, "amount"),
            by_code=bool(request.code),
            encode=responses.consume_coupon_response,
            lines=lines_from(request.lines, request.merchant_id),
        )
        directory = self._do.directory
        facts = await (directory.by_code(request.code, call) if request.code else directory.by_id(request.coupon_id))
        response = await self._do.consume(command, facts, deadline=request_context.current().deadline)
        return pb.ConsumeCouponResponse.FromString(response)


def _imported(coupon_ids: Sequence[str]) -> bytes:
    return pb.ImportCodesResponse(coupon_ids=coupon_ids).SerializeToString(deterministic=True)
