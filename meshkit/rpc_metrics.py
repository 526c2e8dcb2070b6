"""Owns the rate, errors and durations of the RPCs that a process serves, counted cheaply and read when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class RpcCounts:
    """What was counted for one RPC."""

    __slots__ = ("_bounds", "_buckets", "_total_s", "answers")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._total_s = 0.0
        self.answers: dict[tuple[str, str], int] = {}

    def count(self, code: str, reason: str, took_s: float) -> None:
        """Counts one answered call; event-loop thread only, so nothing is locked."""
        key = (code, reason)
        self.answers[key] = self.answers.get(key, 0) + 1
        self._buckets[bisect_left(self._bounds, took_s)] += 1
        self._total_s += took_s

    def durations(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets as Prometheus wants them, and the sum of all durations in seconds."""
        names = [*(repr(bound) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._buckets)), strict=True)), self._total_s


class RpcMetrics(Collector):
    """Rate, errors and durations per RPC; counting takes about 1 µs, prometheus_client's own objects about 5."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Takes the upper bounds of the duration buckets, in seconds."""
        self._bounds = tuple(bounds)
        self._rpcs: dict[str, RpcCounts] = {}
        self.in_flight = 0

    def rpc(self, name: str) -> RpcCounts:
        """The counts of one RPC, "/package.Service/Method"."""
        return self._rpcs.setdefault(name, RpcCounts(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """What Prometheus scrapes: called from the endpoint's thread."""
        requests = CounterMetricFamily("mesh_rpc_requests", "Calls answered.", labels=("rpc", "code", "reason"))
        durations = HistogramMetricFamily("mesh_rpc_duration_seconds", "Time from arrival to answer.", labels=("rpc",))
        for name, counts in self._rpcs.items():
            for (code, reason), number in list(counts.answers.items()):
                requests.add_metric((name, code, reason), number)
            buckets, total_s = counts.durations()
            durations.add_metric((name,), buckets, total_s)
        yield requests
        yield durations
        yield GaugeMetricFamily("mesh_rpc_in_flight", "Calls being served.", value=self.in_flight)
