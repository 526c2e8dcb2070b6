"""Owns the use case AssessBatch: a batch of operations in, one decision for each out."""

from collections.abc import Sequence

from meshkit.errors import MeshError
from risk_svc.app.ports import Observer, Windows
from risk_svc.domain.operations import Decision, Operation, ensure_distinct
from risk_svc.domain.rules import Rules

REPLY_SHARE = 0.2
REPLY_MIN_S = 0.002
"""What is kept of the caller's time for the way back, a share of it and at least this much: an answer that comes after
the deadline is none, and tells the caller less than WINDOWS_UNAVAILABLE does."""


class AssessBatch:
    """Decides on batches of operations.

    Args:
        rules: The rules in force.
        windows: Where the counting happens.
        observer: Hears every decision.
        windows_timeout_s: The longest wait for the windows, however patient the caller is.
    """

    def __init__(self, rules: Rules, windows: Windows, observer: Observer, *, windows_timeout_s: float) -> None:
        self._rules = rules
        self._windows = windows
        self._observer = observer
        self._windows_timeout_s = windows_timeout_s

    async def __call__(self, operations: Sequence[Operation], *, remaining_s: float) -> list[Decision]:
        """Decides on each operation in order; a later one sees what the earlier ones counted.

        Args:
            operations: Distinct by operation_id.
            remaining_s: What is left of the caller's deadline.

        Returns:
            One decision for each operation, in order.

        Raises:
            MeshError: OPERATION_DUPLICATED; WINDOWS_UNAVAILABLE when the windows can't answer in time.
        """
        ensure_distinct(operations)
        timeout_s = min(self._windows_timeout_s, remaining_s - max(REPLY_MIN_S, remaining_s * REPLY_SHARE))
        if timeout_s <= 0:
            self._observer.windows_failed("timeout")
            raise MeshError("WINDOWS_UNAVAILABLE")
        checks = [self._rules.check(operation) for operation in operations]
        decisions = await self._windows.assess(checks, timeout_s=timeout_s)
        self._observer.batch(len(operations))
        for operation, decision in zip(operations, decisions, strict=True):
            self._observer.decided(operation.kind, decision)
        return decisions
