"""Stand-ins for risk_svc's ports: windows in memory, an observer that takes notes, a clock that is set by hand."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshkit.errors import MeshError
from risk_svc.domain.operations import Decision, Kind
from risk_svc.domain.windows import Check, Effect, WindowLimit


@dataclass
class HandClock:
    """A clock that moves when told to; calling it gives the time in milliseconds."""

    now_ms: int = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, duration_ms: int) -> None:
        self.now_ms += duration_ms


@dataclass
class NotingObserver:
    """Remembers what it heard."""

    batches: list[int] = field(default_factory=list)
    decisions: list[tuple[Kind, Decision]] = field(default_factory=list)
    script_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def decided(self, kind: Kind, decision: Decision) -> None:
        self.decisions.append((kind, decision))

    def script_ran(self, duration_s: float) -> None:
        self.script_s.append(duration_s)

    def windows_failed(self, cause: str) -> None:
        self.failures.append(cause)


@dataclass
class _Window:
    buckets: Counter[int] = field(default_factory=Counter)
    tripped: bool = False

    def at(self, limit: WindowLimit, now_ms: int) -> "_Window":
        """What is left of it now; events of the future, after a clock stepped back, count as of now."""
        present_ms = limit.bucket_start_ms(now_ms)
        live: Counter[int] = Counter()
        for start_ms, events in self.buckets.items():
            if limit.is_live(start_ms, now_ms):
                live[min(start_ms, present_ms)] += events
        return _Window(live, self.tripped and bool(live))

    def count(self, limit: WindowLimit, now_ms: int) -> None:
        self.buckets[limit.bucket_start_ms(now_ms)] += 1


class MemoryWindows:
    """Windows in memory; implements the port Windows for one process.

    A record does not age here: tests of that belong to Redis.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self.away = False
        self.timeouts_s: list[float] = []
        self._clock_ms = clock_ms
        self._records: dict[tuple[str, ...], Decision] = {}
        self._windows: dict[tuple[str, tuple[str, ...]], _Window] = {}

    async def assess(self, checks: Sequence[Check], *, timeout_s: float) -> list[Decision]:
        self.timeouts_s.append(timeout_s)
        if self.away:
            raise MeshError("WINDOWS_UNAVAILABLE")
        now_ms = self._clock_ms()
        return [self._decide(check, now_ms) for check in checks]

    def _decide(self, check: Check, now_ms: int) -> Decision:
        known = self._records.get(check.identity)
        if known is not None:
            return Decision(known.refused_by, replayed=True)
        refused_by = []
        spends = []
        for step in check.steps:
            key = (step.limit.rule, step.subject)
            window = self._windows.get(key, _Window()).at(step.limit, now_ms)
            if step.effect is Effect.MARK:
                window.count(step.limit, now_ms)
                window.tripped = window.tripped or window.buckets.total() > step.limit.limit
                self._windows[key] = window
            elif step.effect is Effect.SPEND:
                spends.append((key, window, step.limit))
            full = step.effect is Effect.SPEND and window.buckets.total() >= step.limit.limit
            if full or (step.effect is not Effect.SPEND and window.tripped):
                refused_by.append(step.limit.rule)
        if not refused_by:
            for key, window, limit in spends:
                window.count(limit, now_ms)
                self._windows[key] = window
        decision = Decision(tuple(refused_by))
        self._records[check.identity] = decision
        return decision
