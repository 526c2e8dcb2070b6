"""Owns a service process's life: start, serve, answer health, drain on SIGTERM, close."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import uvloop
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import EnumDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from meshkit import logs
from meshkit.channel import KEEPALIVE_TIME_MS
from meshkit.config import ServiceConfig, unknown_variables
from meshkit.error_table import ErrorTable
from meshkit.interceptor import Interceptor
from meshkit.metrics_endpoint import metrics_served
from meshkit.telemetry import Telemetry

MAX_METADATA_BYTES = 16 * 1024
# Half of what channels keep, since pings that wait for a slow network or process arrive closer together.
SHORTEST_PING_INTERVAL_MS = KEEPALIVE_TIME_MS // 2

C = TypeVar("C", bound=ServiceConfig)


@dataclass(frozen=True)
class ServiceBinding:
    """One gRPC service and who implements it.

    Attributes:
        full_name: Such as "couponmesh.coupon.v1.CouponService".
        register: The generated add_…Servicer_to_server.
        servicer: The implementation.
    """

    full_name: str
    register: Callable[[Any, grpc.aio.Server], None]
    servicer: object


Build = Callable[[C, Telemetry], AbstractAsyncContextManager[Sequence[ServiceBinding]]]


@dataclass(frozen=True)
class Endpoints:
    """Where a service can be reached once it serves; the ports are the real ones even when 0 was configured."""

    listen: str
    port: int
    metrics_listen: str
    metrics_port: int


def run(config: C, build: Build[C], *, error_reasons: Sequence[EnumDescriptor]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; the whole life of a service process.

    Args:
        config: The configuration.
        build: Opens what the service needs and gives its services; left after the last call ended.
        error_reasons: The service's own ErrorReason enums.

    Raises:
        SystemExit: With status 1, when the service could not start.
    """
    logs.configure(config.service_name, config.log_level, config.log_format)
    log = logs.logger("meshkit.server")
    if unknown := unknown_variables(type(config)):
        log.warning("variables_unknown", variables=unknown)
    try:
        uvloop.run(_live(config, build, error_reasons))
    except Exception as error:  # noqa: BLE001 - the boundary of the process.
        # Of a system error the text is a path or an address.
        reason = str(error) if isinstance(error, StartRefusedError | OSError) else ""
        # Not log.exception: the text of an exception may hold a secret.
        log.error("service_failed", problem=reason, **logs.describe(error))  # noqa: TRY400
        raise SystemExit(1) from None


class StartRefusedError(Exception):
    """The service must not start as it is; the text says why and holds no secret."""


async def _live(config: C, build: Build[C], error_reasons: Sequence[EnumDescriptor]) -> None:
    """Serves until a signal; one that arrives during the start ends the start."""
    stop, started = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(_serve_until(stop, started, config, build, error_reasons))
    log = logs.logger("meshkit.server")

    def on_signal() -> None:
        log.info("stop_requested", again=stop.is_set())
        # A second signal changes nothing: the drain is bounded, and killing it could cut a commit short.
        if not stop.is_set():
            stop.set()
            if not started.is_set():
                life.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await asyncio.wait({life})
    if not life.cancelled():
        life.result()


async def _serve_until(
    stop: asyncio.Event,
    started: asyncio.Event,
    config: C,
    build: Build[C],
    error_reasons: Sequence[EnumDescriptor],
) -> None:
    async with serving(config, build, error_reasons=error_reasons):
        started.set()
        await stop.wait()


@contextlib.asynccontextmanager
async def serving(config: C, build: Build[C], *, error_reasons: Sequence[EnumDescriptor]) -> AsyncIterator[Endpoints]:
    """Serves within the block; leaving it drains: NOT_SERVING, wait `drain_s`, stop within `grace_s`, close.

    Raises:
        StartRefusedError: An RPC lacks its access option or implementation, an error reason its specification, or a
            port is taken.
    """
    log = logs.logger("meshkit.server")
    telemetry = Telemetry(config.service_name, sample_ratio=config.trace_sample_ratio, trace_file=config.trace_file)
    with contextlib.closing(telemetry):
        async with build(config, telemetry) as bindings:
            server = _server(config, telemetry, bindings, error_reasons)
            port = _bind(server, config.listen)
            checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # Its stubs lack the asyncio half.
            health_pb2_grpc.add_HealthServicer_to_server(checks, server)
            names = [binding.full_name for binding in bindings]
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
            with _metrics(config.metrics_listen, telemetry) as metrics_port:
                await server.start()
                for name in names:
                    await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
                endpoints = Endpoints(config.listen, port, config.metrics_listen, metrics_port)
                log.info("service_serving", listen=config.listen, port=port, metrics_port=metrics_port)
                try:
                    yield endpoints
                finally:
                    log.info("service_draining", drain_s=config.drain_s, grace_s=config.grace_s)
                    await checks.enter_graceful_shutdown()
                    await asyncio.sleep(config.drain_s)
                    await server.stop(config.grace_s)
    log.info("service_stopped")


class _Registration:
    """Stands in for the server while generated code registers a service, and keeps the handlers it would get."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignores them: the registered handlers are the same."""

    def add_registered_method_handlers(self, _: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Keeps them."""
        self.handlers.update(handlers)


def _server(
    config: ServiceConfig,
    telemetry: Telemetry,
    bindings: Sequence[ServiceBinding],
    error_reasons: Sequence[EnumDescriptor],
) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=(
            # By default a second server takes the same port silently.
            ("grpc.so_reuseport", int(config.so_reuseport)),
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            # Channels of meshkit ping also when idle; gRPC hangs up on whoever pings more often than this. Its core
            # silently ignores an option that it does not know, such as this one with `recv` in its name.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_INTERVAL_MS),
        )
    )
    try:
        interceptor = Interceptor(
            telemetry,
            ErrorTable(error_reasons),
            default_deadline_s=config.default_deadline_ms / 1000,
            max_deadline_s=config.max_deadline_ms / 1000,
            max_in_flight=config.max_in_flight,
            log_requests=config.log_level == "DEBUG",
        )
        for binding in bindings:
            registration: Any = _Registration()
            binding.register(binding.servicer, registration)
            service = descriptor_pool.Default().FindServiceByName(binding.full_name)
            handlers = interceptor.wrap(service, registration.handlers)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(binding.full_name, handlers),))
    except ValueError as error:
        raise StartRefusedError(str(error)) from error
    return server


def _bind(server: grpc.aio.Server, listen: str) -> int:
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise StartRefusedError(f"cannot listen on {listen}: is another server there?") from error
    if port == 0:
        raise StartRefusedError(f"cannot listen on {listen}")
    return port


@contextlib.contextmanager
def _metrics(listen: str, telemetry: Telemetry) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(metrics_served(listen, telemetry.registry))
        except OSError as error:
            raise StartRefusedError(f"cannot listen on {listen} for metrics: {error.strerror}") from error
        yield port
