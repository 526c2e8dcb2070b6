"""Owns risk_svc's own metrics."""

from meshkit.telemetry import Telemetry
from risk_svc.domain.operations import Decision, Kind

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)


class PrometheusObserver:
    """Counts decisions; implements the port Observer."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._decisions = telemetry.counter(
            "risk_decisions",
            'Decisions by kind of operation, verdict and refusing rule ("" when allowed); replays apart.',
            ("kind", "verdict", "rule", "replayed"),
        )
        self._batch_sizes = telemetry.histogram("risk_batch_size", "Operations per batch.", buckets=_BATCH_SIZES)
        self._script_s = telemetry.histogram(
            "risk_script_seconds", "Time of one pass over the windows, as the service sees it.", buckets=_SECONDS
        )
        self._failures = telemetry.counter("risk_windows_failures", "Batches the windows did not answer.", ("cause",))

    def batch(self, size: int) -> None:
        """A batch of `size` operations was asked about."""
        self._batch_sizes.observe(size)

    def decided(self, kind: Kind, decision: Decision) -> None:
        """One operation was decided on; a decision that two rules refused counts once for each."""
        for rule in decision.refused_by or ("",):
            self._decisions.labels(kind.value, decision.verdict.value, rule, str(decision.replayed).lower()).inc()

    def script_ran(self, duration_s: float) -> None:
        """One pass over the windows answered after `duration_s`."""
        self._script_s.observe(duration_s)

    def windows_failed(self, cause: str) -> None:
        """The windows did not answer."""
        self._failures.labels(cause).inc()
