"""Lets a long calculation give way to the requests being served, so that no consume waits for a bulk job."""

from __future__ import annotations

import asyncio
import time

# The longest that a calculation keeps the event loop to itself, unless one item takes longer.
SLICE_S = 0.0005


class Pace:
    """Counts the time since others last ran."""

    def __init__(self, slice_s: float = SLICE_S) -> None:
        """Begins now."""
        self._slice_s = slice_s
        self._since = time.monotonic()

    async def breathe(self) -> None:
        """Lets others run when this calculation has had its slice; to be awaited after each item."""
        if time.monotonic() - self._since >= self._slice_s:
            await asyncio.sleep(0)
            self._since = time.monotonic()
