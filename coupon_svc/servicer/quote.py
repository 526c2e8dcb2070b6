"""QuoteOrder and ExplainCoupon of couponmesh.coupon.v1.CouponService."""

from __future__ import annotations

from typing import Any

import grpc

from coupon_svc.app.quoting import Explanation, Named, OrderQuote, Quoting
from coupon_svc.domain.order import Order
from coupon_svc.domain.quote import Applied
from coupon_svc.domain.remedies import remedy
from coupon_svc.servicer.requests import CallReader, amount_minor, lines_from
from coupon_svc.servicer.responses import line_deductions, money
from couponmesh.coupon.v1 import quote_pb2 as pb
from couponmesh.type.v1 import access_pb2
from meshkit import context as request_context
from meshkit.errors import MeshError

# Roles that may look at coupons of any user.
_SEES_ALL = frozenset({access_pb2.ROLE_OPERATOR, access_pb2.ROLE_RISK, access_pb2.ROLE_SERVICE})


class QuoteRpcs:
    """Part of CouponServicer: what looks ahead."""

    _quoting: Quoting
    _calls: CallReader

    async def QuoteOrder(
        self, request: pb.QuoteOrderRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.QuoteOrderResponse:
        """See the contract."""
        acting_for_merchant = _acts_for(request.merchant_id)
        if acting_for_merchant and not request.coupons:
            # Whose coupons there are is the shopper's to show.
            raise MeshError("COUPONS_REQUIRED")
        order = Order.of_lines(request.merchant_id, lines_from(request.lines, request.merchant_id))
        found = await self._quoting.quote(
            self._calls.read(request, "", request.client),
            order=order,
            user_id=request.user_id,
            named=[Named(each.coupon_id, each.code) for each in request.coupons],
            only_user=_only_user(request.merchant_id),
        )
        return _quoted(found)

    async def ExplainCoupon(
        self, request: pb.ExplainCouponRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ExplainCouponResponse:
        """See the contract."""
        order = Order(
            request.merchant_id,
            amount_minor(request.amount, "amount"),
            lines_from(request.lines, request.merchant_id),
        )
        found = await self._quoting.explain(
            self._calls.read(request, "", request.client),
            named=Named(request.coupon_id, request.code),
            user_id=request.user_id,
            order=order,
            only_user=_only_user(request.merchant_id),
        )
        return _explained(found)


def _acts_for(merchant_id: str) -> bool:
    """Whether the caller is let in as a cashier of this merchant, and not as one who sees all."""
    who = request_context.current().principal
    cashier = access_pb2.ROLE_CASHIER in who.roles and who.merchant_id == merchant_id
    return cashier and not who.roles & _SEES_ALL


def _only_user(merchant_id: str) -> int | None:
    """The shopper who asks; None for those who may name anybody's coupons."""
    who = request_context.current().principal
    return None if who.roles & _SEES_ALL or _acts_for(merchant_id) else int(who.subject)


def _quoted(found: OrderQuote) -> pb.QuoteOrderResponse:
    best = found.quote
    deduction_minor = sum(each.deduction_minor for each in best.coupons)
    paid_minor = sum(each.deduction_minor for each in best.gift_cards)
    return pb.QuoteOrderResponse(
        coupons=[
            *(_applied(each, gift_card=False) for each in best.coupons),
            *(_applied(each, gift_card=True) for each in best.gift_cards),
        ],
        unused=[
            *(
                pb.UnusedCoupon(coupon_id=each.coupon_id, reason=each.reason, in_favour_of=each.in_favour_of)
                for each in best.unused
            ),
            *(
                pb.UnusedCoupon(coupon_id=coupon_id, reason=failure.reason, metadata=failure.metadata)
                for coupon_id, failure in found.refused
            ),
        ],
        amount=money(found.order.amount_minor),
        deduction=money(deduction_minor),
        gift_card_payment=money(paid_minor),
        payable=money(best.payable_minor),
        proven=best.proven,
        more_coupons=found.more_coupons,
    )


def _applied(applied: Applied, *, gift_card: bool) -> pb.QuotedCoupon:
    return pb.QuotedCoupon(
        coupon_id=applied.offer.coupon_id,
        deduction=money(applied.deduction_minor),
        lines=line_deductions(applied.lines),
        gift_card=gift_card,
    )


def _explained(found: Explanation) -> pb.ExplainCouponResponse:
    return pb.ExplainCouponResponse(
        coupon_id=found.coupon_id,
        usable=not found.failures,
        failures=[_failed(failure) for failure in found.failures],
    )


def _failed(failure: MeshError) -> pb.FailedCheck:
    english, chinese = remedy(failure)
    return pb.FailedCheck(reason=failure.reason, metadata=failure.metadata, remedy_en=english, remedy_zh=chinese)
