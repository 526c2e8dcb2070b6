"""Runs a sweep over the databases now and then, for as long as this process leads it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from meshkit.errors import MeshError
from meshkit.leader import Leadership
from meshkit.mysql_errors import DatabaseError


class Sweeping:
    """The work of one term of a sweep's leader.

    Who leads only saves work: each sweep looks again at what it changes under the row's lock, so that two at once, or
    one that woke up after its term, do nothing twice.
    """

    def __init__(self, databases: Sequence[str], run_once: Callable[[str], Awaitable[int]], *, every_s: float) -> None:
        """`run_once` sweeps one database and gives how much it did."""
        self._databases = databases
        self._run_once = run_once
        self._every_s = every_s

    async def run(self, leadership: Leadership) -> None:
        """Goes on until cancelled; a database that is away is visited again the next time."""
        while True:
            for database in self._databases:
                leadership.check()
                try:
                    await self._run_once(database)
                except (DatabaseError, MeshError):
                    # Away, or its shards are being moved.
                    continue
            # Jitter keeps the sweeps apart; it needs no cryptographic randomness.
            await asyncio.sleep(self._every_s * (0.5 + random.random()))  # noqa: S311
