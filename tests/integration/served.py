"""A CashierService whose behaviour a test states, served on loopback, and what a caller sees of it."""

import asyncio
import base64
import json
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from couponmesh.coupon.v1 import cashier_service_pb2_grpc, coupon_service_pb2, coupon_service_pb2_grpc
from couponmesh.coupon.v1 import error_reason_pb2 as coupon_errors
from couponmesh.coupon.v1.audit_pb2 import VerifyAuditTrailRequest, VerifyAuditTrailResponse
from couponmesh.coupon.v1.cashier_service_pb2 import ConsumeRequest, ConsumeResponse
from couponmesh.risk.v1 import risk_service_pb2_grpc
from couponmesh.risk.v1.risk_service_pb2 import AssessBatchRequest, AssessBatchResponse
from meshkit.config import ServiceConfig
from meshkit.server import Endpoints, ServiceBinding, serving
from meshkit.telemetry import Telemetry

CASHIER = "couponmesh.coupon.v1.CashierService"
CONSUME = f"/{CASHIER}/Consume"
RISK = "couponmesh.risk.v1.RiskService"
COUPONS = "couponmesh.coupon.v1.CouponService"
VERIFY = f"/{COUPONS}/VerifyAuditTrail"

Consume = Callable[[ConsumeRequest], Awaitable[ConsumeResponse]]
Verify = Callable[[VerifyAuditTrailRequest], AsyncGenerator[VerifyAuditTrailResponse, None]]
Metadata = tuple[tuple[str, str], ...]


def token(**claims: Any) -> tuple[str, str]:
    """The header that the edge makes of a verified token."""
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return ("x-jwt-payload", text)


TILL: Metadata = (token(sub="pos-7", client_id="till", roles=["cashier"], merchant_id="10086"),)

AUDITOR: Metadata = (token(sub="audit-desk", client_id="audit-desk", roles=["auditor"]),)


def order(**fields: Any) -> ConsumeRequest:
    defaults: dict[str, Any] = {"coupon_code": "7XK9-B2T4", "merchant_id": "10086", "amount": 150.0}
    return ConsumeRequest(**(defaults | fields))


class Cashier(cashier_service_pb2_grpc.CashierServiceServicer):
    def __init__(self, consume: Consume) -> None:
        self._consume = consume

    async def Consume(self, request: ConsumeRequest, context: Any) -> ConsumeResponse:  # noqa: N802 - the contract's.
        del context
        return await self._consume(request)


class Risk(risk_service_pb2_grpc.RiskServiceServicer):
    def __init__(self, assess: Callable[[], None]) -> None:
        self._assess = assess

    async def AssessBatch(  # noqa: N802 - the contract's.
        self, request: AssessBatchRequest, context: Any
    ) -> AssessBatchResponse:
        del request, context
        self._assess()
        return AssessBatchResponse()


def coupons(verify: Verify) -> ServiceBinding:
    """A CouponService of which only VerifyAuditTrail, the call that streams, does anything."""

    async def nothing(self: object, request: object, context: object) -> None:
        raise AssertionError

    async def stream(self: object, request: Any, context: object) -> AsyncGenerator[VerifyAuditTrailResponse, None]:
        async for reply in verify(request):
            yield reply

    service = coupon_service_pb2.DESCRIPTOR.services_by_name["CouponService"]
    behaviours: dict[str, Any] = {method.name: nothing for method in service.methods}
    servicer = type(
        "Coupons", (coupon_service_pb2_grpc.CouponServiceServicer,), {**behaviours, "VerifyAuditTrail": stream}
    )
    return ServiceBinding(COUPONS, coupon_service_pb2_grpc.add_CouponServiceServicer_to_server, servicer())


async def answers(_: ConsumeRequest) -> ConsumeResponse:
    return ConsumeResponse(transaction_id="TX1")


def cashier(consume: Consume = answers) -> ServiceBinding:
    return ServiceBinding(CASHIER, cashier_service_pb2_grpc.add_CashierServiceServicer_to_server, Cashier(consume))


def risk(assess: Callable[[], None]) -> ServiceBinding:
    return ServiceBinding(RISK, risk_service_pb2_grpc.add_RiskServiceServicer_to_server, Risk(assess))


def configured(**fields: Any) -> ServiceConfig:
    anywhere = "127.0.0.1:0"
    defaults: dict[str, Any] = {"listen": anywhere, "metrics_listen": anywhere, "drain_s": 0.0, "grace_s": 2.0}
    return ServiceConfig(**(defaults | fields))


@asynccontextmanager
async def served(*bindings: ServiceBinding, **fields: Any) -> AsyncIterator[Endpoints]:
    @asynccontextmanager
    async def build(_: ServiceConfig, __: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
        yield bindings

    async with serving(configured(**fields), build, error_reasons=[coupon_errors.ErrorReason.DESCRIPTOR]) as endpoints:
        yield endpoints


@asynccontextmanager
async def till(endpoints: Endpoints) -> AsyncIterator[Any]:
    """A client of the CashierService, as generated."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel:
        yield cashier_service_pb2_grpc.CashierServiceStub(channel)


@asynccontextmanager
async def desk(endpoints: Endpoints) -> AsyncIterator[Any]:
    """A client of the CouponService, as generated."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel:
        yield coupon_service_pb2_grpc.CouponServiceStub(channel)


class Refusal:
    """What a refused caller was told."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details()
        trailers: Any = error.trailing_metadata() or ()
        raw = dict(trailers).get("grpc-status-details-bin", b"")
        self.status = status_pb2.Status.FromString(raw)
        self.info = self.detail(error_details_pb2.ErrorInfo)
        self.reason: str = self.info.reason
        self.metadata = dict(self.info.metadata)

    def detail(self, kind: Any) -> Any:
        """The first detail of a kind; an empty one when there is none."""
        found = kind()
        for packed in self.status.details:
            if packed.Is(kind.DESCRIPTOR):
                packed.Unpack(found)
                break
        return found

    @property
    def languages(self) -> dict[str, str]:
        texts = {}
        for packed in self.status.details:
            text = error_details_pb2.LocalizedMessage()
            if packed.Unpack(text):
                texts[text.locale] = text.message
        return texts

    @property
    def fields(self) -> list[str]:
        return [each.field for each in self.detail(error_details_pb2.BadRequest).field_violations]


async def refused(call: Awaitable[Any]) -> Refusal:
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError(f"the call was answered: {reply}")


async def metrics(endpoints: Endpoints) -> str:
    url = f"http://127.0.0.1:{endpoints.metrics_port}/metrics"

    def scrape() -> str:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return str(reply.read().decode())

    return await asyncio.to_thread(scrape)


async def eventually(condition: Callable[[], Awaitable[bool]] | Callable[[], bool], within_s: float = 5.0) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + within_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0.01)
