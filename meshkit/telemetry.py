"""Owns a process's metrics registry and tracer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.registry import Collector

from meshkit import context, tracing

# Seconds, for calls: from a cached answer to the longest deadline.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """Metrics and spans of one process; nothing of it is global.

    Attributes:
        service_name: Who reports.
        registry: Its own Prometheus registry. No id is ever a label.
        tracer: An OpenTelemetry tracer that records what belongs to a sampled request.
        sample_ratio: Share of undecided traces to sample, 0 to 1.
        records: Whether spans are written anywhere.
    """

    def __init__(self, service_name: str, *, sample_ratio: float = 0.0, trace_file: Path | None = None) -> None:
        self.service_name = service_name
        self.sample_ratio = sample_ratio
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._provider = TracerProvider(
            sampler=tracing.FollowParent(),
            resource=Resource({"service.name": service_name}),
            shutdown_on_exit=False,
        )
        self.records = trace_file is not None
        if trace_file is not None:
            exporter = tracing.JsonLines(trace_file, service_name)
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        self.tracer = self._provider.get_tracer("meshkit")

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """A counter of this registry."""
        return Counter(name, doc, labels, registry=self.registry)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        """A gauge of this registry."""
        return Gauge(name, doc, labels, registry=self.registry)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        """A histogram of this registry; by default its buckets are seconds of a call."""
        return Histogram(name, doc, labels, buckets=buckets, registry=self.registry)

    def collect(self, collector: Collector) -> None:
        """Adds a collector that reads its values when it is scraped."""
        self.registry.register(collector)

    def span(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[Span | None]:
        """A span around a part of the current request; costs a lookup when the request is not sampled.

        An exception that passes through is not described in the span: its text may be personal.
        """
        request = context.current_or_none()
        if request is None or not request.sampled or not self.records:
            return nullcontext()
        return self.tracer.start_as_current_span(name, kind=kind, record_exception=False, set_status_on_exception=False)

    def start_span(self, name: str, hop: tracing.Hop) -> Span:
        """The span of a sampled request that arrived here; the caller ends it."""
        return self.tracer.start_span(name, context=tracing.remote_parent(hop), kind=trace.SpanKind.SERVER)

    def close(self) -> None:
        """Writes the spans that are still held back."""
        self._provider.shutdown()
