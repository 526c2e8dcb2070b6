"""Owns which requests are traced, how a trace crosses a hop, and where finished spans are written."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.util.types import Attributes

TRACEPARENT_KEY = "traceparent"
NO_SPAN = "0" * 16

# https://www.w3.org/TR/trace-context/#traceparent-header; later versions may append fields.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Hop(NamedTuple):
    """Where a request stands in its trace.

    Attributes:
        trace_id: 32 hex digits.
        parent_id: 16 hex digits of the caller's span; zeros when the trace begins here.
        sampled: Whether spans of the trace are recorded.
    """

    trace_id: str
    parent_id: str
    sampled: bool


def arrive(traceparent: str | None, sample_ratio: float, *, trusted: bool) -> Hop:
    """Decides on sampling from the header alone, before any span exists.

    Where a request comes in, neither its flag nor its trace id has a say, both of which a client chooses; the services
    behind follow the flag of the service that calls.

    Args:
        traceparent: The header, or None; one that is malformed counts as none.
        sample_ratio: Share of traces to sample, 0 to 1.
        trusted: Whether a service of ours sent it.
    """
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        trace_id = f"{random.getrandbits(128) or 1:032x}"
        return Hop(trace_id, NO_SPAN, _chosen(sample_ratio))
    trace_id, parent_id, flags = match.groups()
    return Hop(trace_id, parent_id, bool(int(flags, 16) & 1) if trusted else _chosen(sample_ratio))


def _chosen(sample_ratio: float) -> bool:
    return random.getrandbits(53) < sample_ratio * (1 << 53)


def depart(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """The traceparent header for a call that this request makes."""
    if span_id == NO_SPAN:
        # The format has no way to say "no parent": an unrecorded hop stands in with the low half of the trace id.
        span_id = trace_id[16:] if trace_id[16:] != NO_SPAN else trace_id[:16]
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def remote_parent(hop: Hop) -> Context:
    """The OpenTelemetry context that a hop's caller left; empty when the trace begins here."""
    if hop.parent_id == NO_SPAN:
        return Context()
    parent = trace.SpanContext(
        trace_id=int(hop.trace_id, 16),
        span_id=int(hop.parent_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


class FollowParent(Sampler):
    """Records server spans, which exist only for requests that were chosen, and what belongs to a sampled parent."""

    def should_sample(  # noqa: PLR0917 - OpenTelemetry's signature.
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        """Looks at the parent's flag."""
        parent = trace.get_current_span(parent_context).get_span_context()
        sampled = kind is trace.SpanKind.SERVER or (parent.is_valid and parent.trace_flags.sampled)
        return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes)

    def get_description(self) -> str:
        """Its name, for OpenTelemetry's own reports."""
        return "FollowParent"


class JsonLines(SpanExporter):
    """Appends finished spans to a file, one JSON object a line."""

    def __init__(self, path: Path, service_name: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write per batch in append mode: the lines of several processes do not mix.
        self._file = path.open("ab", buffering=0)
        self._service_name = service_name

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes one batch."""
        lines = "".join(json.dumps(self._line(span), ensure_ascii=False) + "\n" for span in spans)
        try:
            self._file.write(lines.encode())
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        self._file.close()

    def _line(self, span: ReadableSpan) -> dict[str, Any]:
        context = span.get_span_context()
        return {
            "service": self._service_name,
            "name": span.name,
            "kind": span.kind.name,
            "trace_id": f"{context.trace_id:032x}" if context else "",
            "span_id": f"{context.span_id:016x}" if context else "",
            "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else "",
            "start_unix_ns": span.start_time,
            "end_unix_ns": span.end_time,
            "attributes": dict(span.attributes or {}),
        }
