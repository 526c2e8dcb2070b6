"""Owns what happens around every RPC: context, trace, deadline, access, validation, errors, metrics and log."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry import context as otel_context
from opentelemetry import trace

from meshkit import context, logs, problems, tracing
from meshkit.access import AccessRule, let_in
from meshkit.context import RequestContext
from meshkit.deadlines import Deadlines
from meshkit.error_table import DETAILS_KEY, ErrorTable
from meshkit.errors import InvalidFields, MeshError
from meshkit.identity import Identities, edge_address, is_service
from meshkit.mysql_errors import CommitOutcomeUnknown, DatabaseUnavailable, Deadlock
from meshkit.rpc_metrics import RpcMetrics
from meshkit.telemetry import LATENCY_BUCKETS, Telemetry
from meshkit.validation import Requests, parse

IDEMPOTENCY_KEY = "idempotency-key"

_IDEMPOTENCY_PATTERN = "^[!-~]{1,64}$"
_VISIBLE_ASCII = re.compile(_IDEMPOTENCY_PATTERN)
_OK = (grpc.StatusCode.OK, "OK")
# What a database may do to any request. It can be repeated: a mutation looks for its own record first.
_DATABASE_AWAY = (DatabaseUnavailable, CommitOutcomeUnknown, Deadlock)
# Refusals that somebody will ask about, and of which there are few.
_RISK_REASONS = frozenset({"RISK_REJECTED", "RISK_UNAVAILABLE"})

ServicerContext = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, ServicerContext], Awaitable[Message]]
StreamBehaviour = Callable[[Any, ServicerContext], AsyncGenerator[Message, None]]


class Interceptor:
    """Wraps a service's handlers when it is registered, so that nothing is looked up or composed per call.

    One composed wrapper stands for what is often five interceptors (five cost 6-24 % of an echo). Requests reach it as
    bytes: a message that cannot be parsed is refused like any other bad request.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        errors: ErrorTable,
        *,
        default_deadline_s: float,
        max_deadline_s: float,
        max_in_flight: int,
        log_requests: bool = False,
    ) -> None:
        """Takes what all RPCs share.

        Args:
            telemetry: Where metrics and spans go.
            errors: How domain errors look on the wire.
            default_deadline_s: For callers that state none, in seconds.
            max_deadline_s: The longest deadline that is honoured, in seconds.
            max_in_flight: Calls served at once; the next one is OVERLOADED.
            log_requests: Whether each request is logged at DEBUG.
        """
        self.telemetry = telemetry
        self.errors = errors
        self.default_deadline_s = default_deadline_s
        self.max_deadline_s = max_deadline_s
        self.defaults = Deadlines(default_deadline_s)
        self.bounds = Deadlines(max_deadline_s)
        self.max_in_flight = max_in_flight
        self.log_requests = log_requests
        self.log = logs.logger("meshkit.rpc")
        self.identities = Identities()
        self.requests = Requests()
        self.metrics = RpcMetrics(LATENCY_BUCKETS)
        telemetry.collect(self.metrics)

    def wrap(
        self, service: ServiceDescriptor, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The handlers to serve instead of `handlers`.

        Raises:
            ValueError: An RPC has no access option or no implementation, or its requests stream.
        """
        return {method.name: self._wrap(method, handlers[method.name]) for method in service.methods}

    def _wrap(
        self, method: MethodDescriptor, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        rule = AccessRule.of(method)
        if handler.request_streaming:
            raise ValueError(f"{rule.rpc} streams requests; only single requests are served")
        request_class = GetMessageClass(method.input_type)
        self.requests.compile(request_class)
        if handler.response_streaming:
            stream: Any = handler.unary_stream
            if not inspect.isasyncgenfunction(stream):
                raise ValueError(f"{rule.rpc} is not implemented by an async generator of its servicer")
            return grpc.unary_stream_rpc_method_handler(_StreamingRpc(self, rule, request_class, stream).serve)
        behaviour: Any = handler.unary_unary
        if not inspect.iscoroutinefunction(behaviour):
            raise ValueError(f"{rule.rpc} is not implemented by a coroutine of its servicer")
        return grpc.unary_unary_rpc_method_handler(_UnaryRpc(self, rule, request_class, behaviour).serve)


@dataclass(slots=True)
class _Call:
    """One call: gRPC's own view of it, what its metadata says, and when it began (`time.monotonic`)."""

    wire: ServicerContext
    metadata: dict[str, Any]
    hop: tracing.Hop
    span_id: str
    started: float


class _Rpc:
    """One RPC and all that is known about it before its first call; a subclass says how its replies are sent."""

    __slots__ = ("_counts", "_request_class", "_rule", "_shared", "_telemetry")

    def __init__(self, shared: Interceptor, rule: AccessRule, request_class: type[Message]) -> None:
        self._shared = shared
        self._telemetry = shared.telemetry
        self._rule = rule
        self._request_class = request_class
        self._counts = shared.metrics.rpc(rule.rpc)

    async def _attempt(self, raw: bytes, call: _Call) -> bytes:
        """Admits the call and lets the servicer answer it."""
        raise NotImplementedError

    async def serve(self, raw: bytes, wire: ServicerContext) -> bytes:
        """Answers one call; every way out of it is counted."""
        started = time.monotonic()
        metadata: dict[str, Any] = dict(wire.invocation_metadata() or ())
        hop = tracing.arrive(
            metadata.get(tracing.TRACEPARENT_KEY), self._telemetry.sample_ratio, trusted=is_service(metadata)
        )
        call = _Call(wire, metadata, hop, hop.parent_id, started)
        if hop.sampled and self._telemetry.records:
            return await self._serve_traced(raw, call)
        return await self._serve(raw, call)

    async def _serve_traced(self, raw: bytes, call: _Call) -> bytes:
        span = self._telemetry.start_span(self._rule.rpc, call.hop)
        ids = span.get_span_context()
        call.hop = call.hop._replace(trace_id=f"{ids.trace_id:032x}")
        call.span_id = f"{ids.span_id:016x}"
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            return await self._serve(raw, call)
        finally:
            otel_context.detach(token)
            span.end()

    async def _serve(self, raw: bytes, call: _Call) -> bytes:
        shared = self._shared
        shared.metrics.in_flight += 1
        try:
            reply = await self._attempt(raw, call)
        except MeshError as error:
            if error.reason in _RISK_REASONS:
                self._tell_of_risk(call, error)
            elif error.reason == "INTERNAL":
                shared.log.error("rpc_failed", rpc=self._rule.rpc, trace_id=call.hop.trace_id, **logs.describe(error))  # noqa: TRY400 - as below.
            await self._refuse(call, error)
        except _DATABASE_AWAY:
            await self._refuse(call, MeshError("UNAVAILABLE", part="mysql"))
        except asyncio.CancelledError:
            # The caller went away or its deadline passed; gRPC answers it, and the task must end as cancelled.
            expired = call.wire.time_remaining() == 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            self._count(call, code, code.name)
            raise
        except Exception as defect:  # noqa: BLE001 - the boundary of a request: whatever is left is a defect.
            # Not log.exception: the text of an exception may be personal.
            fields = logs.describe(defect)
            shared.log.error("rpc_failed", rpc=self._rule.rpc, trace_id=call.hop.trace_id, **fields)  # noqa: TRY400
            await self._refuse(call, MeshError("INTERNAL"))
        finally:
            shared.metrics.in_flight -= 1
        self._count(call, *_OK)
        return reply

    def _admit(self, raw: bytes, call: _Call) -> tuple[Message, Deadlines | None]:
        """Enters the request's context; gives the checked request, and who ends it unless gRPC does.

        Raises:
            MeshError: The caller may not make this call, or not now, or not so.
        """
        shared, metadata = self._shared, call.metadata
        if shared.metrics.in_flight > shared.max_in_flight:
            raise MeshError("OVERLOADED")
        principal = shared.identities.principal(metadata)
        ownerships = self._rule.ownerships(principal)
        request = parse(self._request_class, raw)
        shared.requests.check(request)
        stored_ownership = let_in(ownerships, principal, request)
        idempotency_key = metadata.get(IDEMPOTENCY_KEY, "")
        if idempotency_key and not _VISIBLE_ASCII.fullmatch(idempotency_key):
            raise InvalidFields([problems.violation(IDEMPOTENCY_KEY, "string.pattern", _IDEMPOTENCY_PATTERN, "")])
        # Without a deadline it is None, whatever the stubs say.
        stated_s: Any = call.wire.time_remaining()
        clock: Deadlines | None = None
        if stated_s is None:
            clock, budget_s = shared.defaults, shared.default_deadline_s
        elif stated_s > shared.max_deadline_s:
            clock, budget_s = shared.bounds, shared.max_deadline_s
        elif stated_s > 0:
            budget_s = stated_s
        else:
            raise MeshError("DEADLINE_EXCEEDED")
        context.enter(
            RequestContext(
                principal=principal,
                method=self._rule.rpc,
                trace_id=call.hop.trace_id,
                deadline=time.monotonic() + budget_s,
                idempotency_key=idempotency_key,
                edge_ip=edge_address(metadata),
                stored_ownership=stored_ownership,
                span_id=call.span_id,
                sampled=call.hop.sampled,
            )
        )
        return request, clock

    def _tell_of_risk(self, call: _Call, error: MeshError) -> None:
        request = context.current_or_none()
        caller = ""
        # A shopper's token may name nobody but the shopper, and a person is not written to the log.
        if request is not None and (
            request.principal.service or request.principal.client_id != request.principal.subject
        ):
            caller = request.principal.client_id
        self._shared.log.info(
            "risk_refused",
            rpc=self._rule.rpc,
            reason=error.reason,
            rules=error.metadata.get("rules", ""),
            caller=caller,
            trace_id=call.hop.trace_id,
        )

    async def _refuse(self, call: _Call, error: MeshError) -> NoReturn:
        shared = self._shared
        known = error.reason in shared.errors
        if not known:
            shared.log.error("reason_unknown", rpc=self._rule.rpc, trace_id=call.hop.trace_id, reason=error.reason)
        status = shared.errors.status(error, call.hop.trace_id)
        self._count(call, status.code, error.reason if known else "INTERNAL")
        # Not set_code: that sends an empty message before the status, which a transcoder takes for the reply.
        await call.wire.abort(status.code, status.message, ((DETAILS_KEY, status.details),))

    def _count(self, call: _Call, code: grpc.StatusCode, reason: str) -> None:
        took_s = time.monotonic() - call.started
        self._counts.count(code.name, reason, took_s)
        if call.hop.sampled and self._telemetry.records:
            span = trace.get_current_span()
            span.set_attribute("rpc.grpc.status_code", code.value[0])
            span.set_attribute("mesh.reason", reason)
        if self._shared.log_requests:
            self._shared.log.debug(
                "rpc_answered",
                rpc=self._rule.rpc,
                reason=reason,
                took_ms=round(took_s * 1000, 3),
                trace_id=call.hop.trace_id,
            )


class _UnaryRpc(_Rpc):
    """One reply for one request."""

    __slots__ = ("_behaviour",)

    def __init__(
        self, shared: Interceptor, rule: AccessRule, request_class: type[Message], behaviour: Behaviour
    ) -> None:
        super().__init__(shared, rule, request_class)
        self._behaviour = behaviour

    async def _attempt(self, raw: bytes, call: _Call) -> bytes:
        request, clock = self._admit(raw, call)
        if clock is None:
            # gRPC cancels this task at the caller's own deadline.
            return (await self._behaviour(request, call.wire)).SerializeToString()
        ticket = clock.enter()
        try:
            return (await self._behaviour(request, call.wire)).SerializeToString()
        except asyncio.CancelledError as error:
            if ticket.owns_cancellation():
                raise MeshError("DEADLINE_EXCEEDED") from error
            raise
        finally:
            clock.leave(ticket)


class _StreamingRpc(_Rpc):
    """A stream of replies for one request; it counts as one call, from its arrival to its end.

    The replies are written here instead of being handed on by a generator: whatever ends the call, the servicer's own
    generator is closed by the task that ran it, before the call is counted.
    """

    __slots__ = ("_behaviour",)

    def __init__(
        self, shared: Interceptor, rule: AccessRule, request_class: type[Message], behaviour: StreamBehaviour
    ) -> None:
        super().__init__(shared, rule, request_class)
        self._behaviour = behaviour

    async def _attempt(self, raw: bytes, call: _Call) -> bytes:
        request, clock = self._admit(raw, call)
        ticket = None if clock is None else clock.enter()
        try:
            async with aclosing(self._behaviour(request, call.wire)) as replies:
                async for reply in replies:
                    await _write(call.wire, reply.SerializeToString())
        except asyncio.CancelledError as error:
            if ticket is not None and ticket.owns_cancellation():
                raise MeshError("DEADLINE_EXCEEDED") from error
            raise
        finally:
            if clock is not None and ticket is not None:
                clock.leave(ticket)
        return b""


async def _write(wire: ServicerContext, reply: bytes) -> None:
    """Returns once the transport took the reply, so that a slow reader slows the servicer down."""
    try:
        await wire.write(reply)
    except grpc.aio.InternalError as error:
        # The connection broke before gRPC got round to cancelling this task; it ends in the same way.
        raise asyncio.CancelledError from error
