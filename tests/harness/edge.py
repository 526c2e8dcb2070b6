"""Runs a real Envoy with the rendered configuration in front of scripted coupon services."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from couponmesh.coupon.v1 import (
    audit_pb2,
    batch_service_pb2,
    batch_service_pb2_grpc,
    cashier_service_pb2,
    cashier_service_pb2_grpc,
    coupon_service_pb2,
    coupon_service_pb2_grpc,
    error_reason_pb2,
)
from couponmesh.risk.v1 import risk_service_pb2, risk_service_pb2_grpc
from meshctl.edge.render import EdgeSettings, command, write_edge
from meshctl.edge.tokens import Claims, DevKeys
from meshkit.error_table import ErrorTable
from meshkit.errors import MeshError

ENVOY = Path(sysconfig.get_path("scripts")) / "envoy"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
CASHIER = Claims(subject="till-1", roles=("cashier",), client_id="till-1", merchant_id="10086", channel="PC")
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def free_port() -> int:
    """A loopback port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Seen:
    """What one call brought to the service."""

    rpc: str
    request: Any
    metadata: Mapping[str, str]


@dataclass
class ScriptedServices:
    """coupon_svc and risk_svc with replies that a test chooses by what it sends.

    A coupon code (or name, or id) that is the name of an error reason is answered with that error; HANG is never
    answered, and CANCELLED_CALL and BARE_UNAVAILABLE are statuses without details.
    """

    port: int = 0
    server: grpc.aio.Server | None = None
    seen: list[Seen] = field(default_factory=list)
    errors: ErrorTable = field(default_factory=lambda: ErrorTable([error_reason_pb2.ErrorReason.DESCRIPTOR]))

    async def stop(self) -> None:
        """Stops at once, as a killed process would."""
        if self.server is not None:
            await self.server.stop(None)

    async def answer(self, rpc: str, selector: str, request: Any, context: Any) -> None:
        """Notes the call, then fails it when the selector says so."""
        self.seen.append(Seen(rpc, request, dict(context.invocation_metadata())))
        if selector == "HANG":
            await asyncio.Event().wait()
        if selector == "BARE_UNAVAILABLE":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "internal address 10.1.2.3 refused")
        if selector in self.errors:
            wanted = self.errors.status(MeshError(selector, **_EXAMPLES.get(selector, {})), TRACE_ID)
            context.set_trailing_metadata((("grpc-status-details-bin", wanted.details),))
            await context.abort(wanted.code, wanted.message)


_EXAMPLES = {
    "MERCHANT_NOT_OWNED": {"merchant_id": "10087"},
    "BELOW_MIN_AMOUNT": {"min_amount": "100.00", "amount": "99.99"},
    "VALIDATION_FAILED": {"field": 'a "quoted" name', "problem": "没有"},
}


class _Cashier(cashier_service_pb2_grpc.CashierServiceServicer):
    def __init__(self, services: ScriptedServices) -> None:
        self._services = services

    async def Consume(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("Consume", request.coupon_code, request, context)
        reply = cashier_service_pb2.ConsumeResponse(transaction_id="TX202508110001", coupon_id="0" * 19)
        minor = round(request.amount * 100) if abs(request.amount) < 1e15 else 0
        reply.deduction.currency_code, reply.deduction.amount_minor = "CNY", minor
        return reply


class _Batches(batch_service_pb2_grpc.BatchServiceServicer):
    def __init__(self, services: ScriptedServices) -> None:
        self._services = services

    async def CreateBatch(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("CreateBatch", request.name, request, context)
        reply = batch_service_pb2.CreateBatchResponse()
        reply.batch.batch_id, reply.batch.name = "1" * 19, request.name
        return reply

    async def GetBatch(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("GetBatch", request.batch_id, request, context)
        return batch_service_pb2.GetBatchResponse()

    async def BlockBatch(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("BlockBatch", request.batch_id, request, context)
        return batch_service_pb2.BlockBatchResponse()


class _Coupons(coupon_service_pb2_grpc.CouponServiceServicer):
    def __init__(self, services: ScriptedServices) -> None:
        self._services = services

    async def ListCoupons(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("ListCoupons", request.page_token, request, context)
        reply = coupon_service_pb2.ListCouponsResponse()
        for number in range(request.page_size):
            reply.coupons.add(coupon_id=f"{number:019}", masked_code="****-****-B2T4")
        return reply

    async def GetTransaction(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("GetTransaction", request.request_id, request, context)
        return coupon_service_pb2.GetTransactionResponse()

    async def ImportCodes(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("ImportCodes", request.request_id, request, context)
        return coupon_service_pb2.ImportCodesResponse(coupon_ids=[line.code for line in request.codes])

    async def VerifyAuditTrail(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        # The shard is how many messages are sent; then the resume token chooses how the stream ends.
        for number in range(request.shard):
            yield audit_pb2.VerifyAuditTrailResponse(resume_token=f"{number}")
        await self._services.answer("VerifyAuditTrail", request.resume_token, request, context)


class _Risk(risk_service_pb2_grpc.RiskServiceServicer):
    def __init__(self, services: ScriptedServices) -> None:
        self._services = services

    async def AssessBatch(self, request: Any, context: Any) -> Any:  # noqa: N802 - the generated name
        await self._services.answer("AssessBatch", "", request, context)
        return risk_service_pb2.AssessBatchResponse()


@contextlib.asynccontextmanager
async def scripted_services(port: int = 0) -> AsyncIterator[ScriptedServices]:
    """The scripted services, listening on a loopback port: the given one or a free one."""
    services = ScriptedServices()
    server = services.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    # The type stubs know the synchronous servicer only.
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    cashier_service_pb2_grpc.add_CashierServiceServicer_to_server(_Cashier(services), server)
    batch_service_pb2_grpc.add_BatchServiceServicer_to_server(_Batches(services), server)  # type: ignore[abstract]
    coupon_service_pb2_grpc.add_CouponServiceServicer_to_server(_Coupons(services), server)  # type: ignore[abstract]
    risk_service_pb2_grpc.add_RiskServiceServicer_to_server(_Risk(services), server)
    services.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield services
    finally:
        await services.stop()


@dataclass
class Edge:
    """A running Envoy."""

    settings: EdgeSettings
    mesh: Path
    pid: int

    @property
    def url(self) -> str:
        """Where the listener is."""
        return f"https://localhost:{self.settings.port}"

    @property
    def authority(self) -> Path:
        """The certificate that clients must trust."""
        return self.mesh / "certs" / "ca.pem"

    def token(self, claims: Claims = CASHIER, *, ttl_s: int = 600, now_s: int | None = None) -> str:
        """A token that this edge accepts."""
        return DevKeys(self.mesh / "keys").token(claims, ttl_s=ttl_s, now_s=now_s)

    def client(self, *, http2: bool = False, **options: Any) -> httpx.AsyncClient:
        """A REST client with a cashier's token."""
        headers = {"authorization": f"Bearer {self.token()}", **options.pop("headers", {})}
        trusted = ssl.create_default_context(cafile=str(self.authority))
        return httpx.AsyncClient(
            base_url=self.url, http1=not http2, http2=http2, verify=trusted, headers=headers, timeout=20.0, **options
        )

    def channel(self) -> grpc.aio.Channel:
        """A native gRPC channel over TLS."""
        credentials = grpc.ssl_channel_credentials(self.authority.read_bytes())
        return grpc.aio.secure_channel(f"localhost:{self.settings.port}", credentials)

    async def statistic(self, name: str) -> int:
        """One of Envoy's counters or gauges."""
        async with self.admin() as admin:
            reply = await admin.get("/stats", params={"filter": f"^{name.replace('.', '[.]')}$"})
        found, _, value = reply.text.strip().partition(": ")
        if found != name:
            raise LookupError(f"Envoy has no statistic {name}")
        return int(value)

    def admin(self) -> httpx.AsyncClient:
        """A client of Envoy's administration, which listens on a unix socket."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.settings.admin_socket))
        return httpx.AsyncClient(transport=transport, base_url="http://envoy", timeout=5.0)


@contextlib.asynccontextmanager
async def running_edge(
    mesh: Path, *, coupon: Sequence[int], risk: Sequence[int] = (), **settings: Any
) -> AsyncIterator[Edge]:
    """Starts Envoy under `mesh` and gives it once its listener and its replicas are ready."""
    ports = [f"127.0.0.1:{port}" for port in coupon]
    chosen = EdgeSettings.under(
        mesh,
        port=free_port(),
        coupon=ports,
        risk=[f"127.0.0.1:{port}" for port in risk] or ports,
        access_log=mesh / "access.log",
        **settings,
    )
    configuration = write_edge(mesh, chosen)
    with (mesh / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command(ENVOY, configuration, threads=1), stdout=log, stderr=log
        )
    edge = Edge(chosen, mesh, process.pid)
    try:
        await asyncio.wait_for(_ready(edge, process), START_TIMEOUT_S)
        yield edge
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(edge: Edge, process: asyncio.subprocess.Process) -> None:
    while True:
        if process.returncode is not None:
            raise RuntimeError((edge.mesh / "envoy.log").read_text())
        with contextlib.suppress(httpx.TransportError):
            async with edge.admin() as admin:
                if (await admin.get("/ready")).text.startswith("LIVE"):
                    return
        await asyncio.sleep(0.05)
