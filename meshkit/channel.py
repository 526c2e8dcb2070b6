"""Owns outgoing gRPC channels: a call says who calls and which trace it belongs to, and always has a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry.trace import SpanKind

from meshkit import context, tracing
from meshkit.identity import SERVICE_KEY
from meshkit.telemetry import Telemetry

# For calls that neither state a timeout nor belong to a request, in seconds.
FALLBACK_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# How often a channel pings when it hears nothing, whether calls are under way or not.
KEEPALIVE_TIME_MS = 10_000

OPTIONS: tuple[tuple[str, int], ...] = (
    # Only the caller knows whether a call may be repeated.
    ("grpc.enable_retries", 0),
    # A peer that came back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A peer that vanished without a FIN is noticed within 13 s even when nothing is under way.
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


def open_channel(target: str, service_name: str, telemetry: Telemetry) -> grpc.aio.Channel:
    """A channel to another service; close it, or use it as an async context manager.

    Args:
        target: "host:port".
        service_name: Who calls; the other side's principal.
        telemetry: Where spans of sampled calls go.
    """
    return _Channel(grpc.aio.insecure_channel(target, options=OPTIONS), service_name, telemetry)


class _Channel(grpc.aio.Channel):
    """Wraps the call objects, not each call: gRPC's own client interceptors start two more tasks per call."""

    def __init__(self, channel: grpc.aio.Channel, service_name: str, telemetry: Telemetry) -> None:
        self._channel = channel
        self._telemetry = telemetry
        self._identity = ((SERVICE_KEY, service_name),)

    async def __aenter__(self) -> grpc.aio.Channel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> bool | None:
        return await self._channel.__aexit__(*failure)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(method, self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(method, self._channel.stream_stream(method, *args, **kwargs))

    def _wrap(self, method: str, invoke: Callable[..., Any]) -> Callable[..., Any]:
        identity, telemetry = self._identity, self._telemetry

        def call(*args: Any, timeout: float | None = None, metadata: Any = None, **kwargs: Any) -> Any:
            headers = (*identity, *metadata) if metadata else identity
            request = context.current_or_none()
            if request is None:
                return invoke(*args, timeout=timeout or FALLBACK_TIMEOUT_S, metadata=headers, **kwargs)
            if timeout is None:
                timeout = max(request.remaining_s(), 0.0)
            if not (request.sampled and telemetry.records):
                parent = tracing.depart(request.trace_id, request.span_id, sampled=request.sampled)
                return invoke(*args, timeout=timeout, metadata=(*headers, (tracing.TRACEPARENT_KEY, parent)), **kwargs)
            span = telemetry.tracer.start_span(method, kind=SpanKind.CLIENT)
            span_id = f"{span.get_span_context().span_id:016x}"
            parent = tracing.depart(request.trace_id, span_id, sampled=True)
            started = invoke(*args, timeout=timeout, metadata=(*headers, (tracing.TRACEPARENT_KEY, parent)), **kwargs)
            started.add_done_callback(lambda _: span.end())
            return started

        return call
