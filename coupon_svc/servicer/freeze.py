"""CouponService's RPCs that freeze and unfreeze."""

from __future__ import annotations

from typing import Any

import grpc

from coupon_svc.app.freezing import Freezing
from coupon_svc.app.reading import CouponView
from coupon_svc.domain.account import Account, AccountStatus
from coupon_svc.servicer import responses
from coupon_svc.servicer.requests import CallReader
from couponmesh.coupon.v1 import freeze_pb2 as pb

_Context = grpc.aio.ServicerContext[Any, Any]


class FreezeRpcs:
    """A part of `CouponServicer`, which sets the attributes."""

    _calls: CallReader
    _freezing: Freezing

    async def FreezeCoupon(self, request: pb.FreezeCouponRequest, context: _Context) -> pb.FreezeCouponResponse:
        """See the contract."""

        def encode(view: CouponView) -> bytes:
            message = pb.FreezeCouponResponse(coupon=responses.coupon_message(view))
            return message.SerializeToString(deterministic=True)

        call = self._calls.read(request, request.request_id)
        response = await self._freezing.coupon(
            call, coupon_id=request.coupon_id, frozen=True, reason=request.reason, encode=encode
        )
        return pb.FreezeCouponResponse.FromString(response)

    async def UnfreezeCoupon(self, request: pb.UnfreezeCouponRequest, context: _Context) -> pb.UnfreezeCouponResponse:
        """See the contract."""

        def encode(view: CouponView) -> bytes:
            message = pb.UnfreezeCouponResponse(coupon=responses.coupon_message(view))
            return message.SerializeToString(deterministic=True)

        call = self._calls.read(request, request.request_id)
        response = await self._freezing.coupon(
            call, coupon_id=request.coupon_id, frozen=False, reason=request.reason, encode=encode
        )
        return pb.UnfreezeCouponResponse.FromString(response)

    async def FreezeAccount(self, request: pb.FreezeAccountRequest, context: _Context) -> pb.FreezeAccountResponse:
        """See the contract."""

        def encode(account: Account) -> bytes:
            message = pb.FreezeAccountResponse(account=responses.account_message(account))
            return message.SerializeToString(deterministic=True)

        call = self._calls.read(request, request.request_id)
        response = await self._freezing.account(
            call, user_id=request.user_id, status=AccountStatus.FROZEN, reason=request.reason, encode=encode
        )
        return pb.FreezeAccountResponse.FromString(response)

    async def UnfreezeAccount(
        self, request: pb.UnfreezeAccountRequest, context: _Context
    ) -> pb.UnfreezeAccountResponse:
        """See the contract."""

        def encode(account: Account) -> bytes:
            message = pb.UnfreezeAccountResponse(account=responses.account_message(account))
            return message.SerializeToString(deterministic=True)

        call = self._calls.read(request, request.request_id)
        response = await self._freezing.account(
            call, user_id=request.user_id, status=AccountStatus.NORMAL, reason=request.reason, encode=encode
        )
        return pb.UnfreezeAccountResponse.FromString(response)
