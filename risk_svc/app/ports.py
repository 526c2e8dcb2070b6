"""Owns the ports of risk_svc: what its use cases need from outside."""

from collections.abc import Sequence
from typing import Protocol

from risk_svc.domain.operations import Decision, Kind
from risk_svc.domain.windows import Check


class Windows(Protocol):
    """Sliding windows that decide and count in one indivisible pass."""

    async def assess(self, checks: Sequence[Check], *, timeout_s: float) -> list[Decision]:
        """Decides on each check in order; a later one sees what the earlier ones counted.

        A check whose identity was decided before gets that decision, replayed, and counts nothing. Otherwise every step
        is looked at before anything is counted, and the decision is remembered. With none refusing, SPEND steps count;
        MARK steps count in any case.

        Args:
            checks: Distinct by identity.
            timeout_s: How long it may take.

        Returns:
            One decision for each check, in order.

        Raises:
            MeshError: WINDOWS_UNAVAILABLE when the windows did not answer in time. Whether the checks were counted is
                then unknown; asking again finds out.
        """
        ...


class Observer(Protocol):
    """Hears what was decided, for the metrics."""

    def batch(self, size: int) -> None:
        """A batch of `size` operations was asked about."""
        ...

    def decided(self, kind: Kind, decision: Decision) -> None:
        """One operation was decided on."""
        ...

    def script_ran(self, duration_s: float) -> None:
        """One pass over the windows answered after `duration_s`."""
        ...

    def windows_failed(self, cause: str) -> None:
        """The windows did not answer: "timeout", "connection" or "refused" (the server answered with an error)."""
        ...
