"""Owns the request context: who calls, by when an answer is due, and which trace it belongs to."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.

    Attributes:
        client_id: The calling system, as its token names it; a service's own name on a direct hop.
        subject: The token's subject; for a shopper the user id.
        roles: Numbers of couponmesh.type.v1.Role.
        merchant_id: The merchant that a cashier acts for; empty for others.
        channel: The sales channel of the token; may be empty.
        service: Name of the calling couponmesh service; empty unless a service calls.
    """

    client_id: str
    subject: str
    roles: frozenset[int]
    merchant_id: str = ""
    channel: str = ""
    service: str = ""


@dataclass(slots=True)
class RequestContext:
    """What is known about the request being served.

    Attributes:
        principal: Who calls.
        method: "/package.Service/Method".
        trace_id: 32 hex digits.
        deadline: When the answer is due, in seconds of `time.monotonic`.
        idempotency_key: The Idempotency-Key header; may be empty.
        edge_ip: The caller's address as the edge saw it; empty on a direct hop.
        stored_ownership: True when only a grant with OWNERSHIP_STORED let the caller in, so the use case compares the
            stored owner.
        span_id: 16 hex digits: the span that outgoing calls name as their parent.
        sampled: Whether spans of this request are recorded.
    """

    principal: Principal
    method: str
    trace_id: str
    deadline: float
    idempotency_key: str = ""
    edge_ip: str = ""
    stored_ownership: bool = False
    span_id: str = "0" * 16
    sampled: bool = False

    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()


_current: ContextVar[RequestContext] = ContextVar("request_context")


def current() -> RequestContext:
    """The context of the request being served.

    Raises:
        LookupError: No request is being served here.
    """
    return _current.get()


def current_or_none() -> RequestContext | None:
    """The context of the request being served, or None outside a request."""
    return _current.get(None)


def enter(request_context: RequestContext) -> None:
    """Makes `request_context` the current one for the rest of this task and for the tasks it starts."""
    _current.set(request_context)
