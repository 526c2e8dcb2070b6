"""The RPCs of couponmesh.coupon.v1.CouponService that reserve, confirm, cancel and reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from coupon_svc.app.cancel import CancelCommand, CancelReservation
from coupon_svc.app.confirm import ConfirmCommand, ConfirmReservation
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.ports import Call, CouponFacts, TransactionRow
from coupon_svc.app.reservation_steps import Outcome
from coupon_svc.app.reserve import DEFAULT_TTL_S, ReserveCommand, ReserveCoupons
from coupon_svc.app.reverse import ReverseCommand, ReverseTransaction
from coupon_svc.domain.hold import Hold
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.reservation import ReservationState, Wanted
from coupon_svc.servicer.requests import CallReader, amount_minor, lines_from
from coupon_svc.servicer.responses import money, timestamp, transaction_message
from couponmesh.coupon.v1 import reservation_pb2 as pb
from meshkit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]
_Owned = pb.ConfirmReservationRequest | pb.CancelReservationRequest | pb.ReverseTransactionRequest


@dataclass(frozen=True, slots=True)
class ReservationUseCases:
    """What these RPCs call."""

    reserve: ReserveCoupons
    confirm: ConfirmReservation
    cancel: CancelReservation
    reverse: ReverseTransaction


class ReservationServicer:
    """Reservations and reversals; mixed into the servicer of CouponService."""

    def __init__(self, directory: CouponDirectory, use_cases: ReservationUseCases, calls: CallReader) -> None:
        """One use case per RPC."""
        self._directory = directory
        self._reservations = use_cases
        self._callers = calls

    async def ReserveCoupons(self, request: pb.ReserveCouponsRequest, context: _Context) -> pb.ReserveCouponsResponse:
        """See the contract."""
        call = self._callers.read(request, request.request_id, request.client)
        amounts = [
            amount_minor(wanted.amount, f"coupons[{index}].amount") if wanted.HasField("amount") else None
            for index, wanted in enumerate(request.coupons)
        ]
        order_minor = amount_minor(request.amount, "amount")
        lines = lines_from(request.lines, request.merchant_id)
        facts = await asyncio.gather(*(self._facts(wanted.coupon_id, wanted.code, call) for wanted in request.coupons))
        response = await self._reservations.reserve(
            ReserveCommand(
                call=call,
                reservation_id=request.reservation_id,
                merchant_id=request.merchant_id,
                order_id=request.order_id,
                amount_minor=order_minor,
                wanted=[Wanted(fact.coupon_id, amount) for fact, amount in zip(facts, amounts, strict=True)],
                facts=facts,
                lines=lines,
                ttl_s=request.ttl_s or DEFAULT_TTL_S,
                by_code=any(wanted.code for wanted in request.coupons),
                content_hash=self._callers.content_hash(request),
                encode=_reserved,
            )
        )
        return pb.ReserveCouponsResponse.FromString(response)

    async def ConfirmReservation(
        self, request: pb.ConfirmReservationRequest, context: _Context
    ) -> pb.ConfirmReservationResponse:
        """See the contract."""
        call = self._callers.read(request, request.request_id)
        wanted = [
            Wanted(
                each.coupon_id,
                amount_minor(each.amount, f"coupons[{index}].amount") if each.HasField("amount") else None,
            )
            for index, each in enumerate(request.coupons)
        ]
        response = await self._reservations.confirm(
            ConfirmCommand(
                call=call,
                reservation_id=request.reservation_id,
                merchant_id=request.merchant_id,
                user_id=await self._owner(request, call),
                wanted=wanted,
                content_hash=self._callers.content_hash(request),
                encode=_confirmed,
            )
        )
        return pb.ConfirmReservationResponse.FromString(response)

    async def CancelReservation(
        self, request: pb.CancelReservationRequest, context: _Context
    ) -> pb.CancelReservationResponse:
        """See the contract."""
        call = self._callers.read(request, request.request_id)
        response = await self._reservations.cancel(
            CancelCommand(
                call=call,
                reservation_id=request.reservation_id,
                merchant_id=request.merchant_id,
                user_id=await self._owner(request, call),
                encode=_cancelled,
            )
        )
        return pb.CancelReservationResponse.FromString(response)

    async def ReverseTransaction(
        self, request: pb.ReverseTransactionRequest, context: _Context
    ) -> pb.ReverseTransactionResponse:
        """See the contract."""
        call = self._callers.read(request, request.request_id)
        response = await self._reservations.reverse(
            ReverseCommand(
                call=call,
                original_request_id=request.original_request_id,
                merchant_id=request.merchant_id,
                user_id=await self._owner(request, call),
                encode=_reversed,
            )
        )
        return pb.ReverseTransactionResponse.FromString(response)

    async def _owner(self, request: _Owned, call: Call) -> int:
        """The user that a request names, by himself or by one of his coupons."""
        if request.user_id:
            return request.user_id
        if request.code:
            await self._directory.refuse_guesser(call)
        facts = await self._facts(request.coupon_id, request.code, call)
        if facts.user_id == 0:
            raise MeshError("COUPON_UNACTIVATED", coupon_id=facts.coupon_id)
        return facts.user_id

    async def _facts(self, coupon_id: str, code: str, call: Call) -> CouponFacts:
        return await (self._directory.by_code(code, call) if code else self._directory.by_id(coupon_id))


def _reserved(outcome: Outcome) -> bytes:
    return pb.ReserveCouponsResponse(reservation=_reservation(outcome)).SerializeToString(deterministic=True)


def _confirmed(outcome: Outcome) -> bytes:
    return pb.ConfirmReservationResponse(
        reservation=_reservation(outcome),
        transactions=[*map(transaction_message, outcome.transactions)],
    ).SerializeToString(deterministic=True)


def _cancelled(state: ReservationState) -> bytes:
    return pb.CancelReservationResponse(state=_state(state)).SerializeToString(deterministic=True)


def _reversed(rows: Sequence[TransactionRow]) -> bytes:
    return pb.ReverseTransactionResponse(transactions=[*map(transaction_message, rows)]).SerializeToString(
        deterministic=True
    )


def _state(state: ReservationState) -> pb.ReservationState.ValueType:
    return pb.ReservationState.ValueType(int(state))


def _reservation(outcome: Outcome) -> pb.Reservation:
    of = outcome.reservation
    return pb.Reservation(
        reservation_id=of.reservation_id,
        user_id=of.user_id,
        merchant_id=of.merchant_id,
        order_id=of.order_id,
        amount=money(of.amount_minor),
        state=_state(of.state),
        holds=[
            _hold(hold, of.lines, shares) for hold, shares in zip(outcome.holds, outcome.shares_minor(), strict=True)
        ],
        payable=money(outcome.payable_minor),
        expire_time=timestamp(of.expires_at_ms),
        create_time=timestamp(of.create_time_ms),
        settlement_held=of.settlement_held,
    )


def _hold(hold: Hold, lines: Sequence[Line], shares_minor: Sequence[int]) -> pb.CouponHold:
    return pb.CouponHold(
        coupon_id=hold.coupon_id,
        deduction=money(hold.effect_minor),
        lines=[
            pb.LineDeduction(line_id=line.line_id, deduction=money(share))
            for line, share in zip(lines, shares_minor, strict=True)
        ],
        transaction_id=hold.transaction_id or "",
    )
