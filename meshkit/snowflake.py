"""Owns the layout of snowflake ids and the rule by which one process issues them without ever repeating one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from meshkit.errors import MeshError

EPOCH_MS: Final = 1_735_689_600_000
"""2025-01-01T00:00:00Z in milliseconds since 1970."""

WORKERS: Final = 1024
SHARDS: Final = 128
_SEQUENCE: Final = 32
_SHARD_BITS: Final = 7
_SEQUENCE_BITS: Final = 5
_WORKER_BITS: Final = 10
_MS_LIMIT: Final = 1 << 41
_ID_DIGITS: Final = 19

Clock = Callable[[], int]
"""Gives milliseconds since EPOCH_MS. It may step back or stand still."""


def wall_clock_ms() -> int:
    """Milliseconds since EPOCH_MS by the machine's clock."""
    return time.time_ns() // 1_000_000 - EPOCH_MS


def shard_of(number: int) -> int:
    """Returns the shard, 0 to 127, that an id routes to."""
    return number & (SHARDS - 1)


def timestamp_ms_of(number: int) -> int:
    """Returns the id's timestamp in milliseconds since EPOCH_MS."""
    return number >> (_WORKER_BITS + _SEQUENCE_BITS + _SHARD_BITS)


def worker_of(number: int) -> int:
    """Returns the worker id, 0 to 1023, under which an id was issued."""
    return number >> (_SEQUENCE_BITS + _SHARD_BITS) & (WORKERS - 1)


def format_id(number: int) -> str:
    """Returns an id as it is stored and sent: 19 digits, zero-padded, so that text order is number order."""
    return f"{number:0{_ID_DIGITS}d}"


class SnowflakeIds:
    """Issues 63-bit ids: 41 bits of milliseconds, 10 of worker, 5 of sequence, 7 of shard.

    Ids of one (worker, shard) only ever rise. The millisecond in an id is logical: it follows the clock, but moves on
    by itself when the 32 ids of a millisecond are used up, and stays where it is when the clock steps back. It lies at
    or above the floor (what an earlier owner of the worker id may have issued) and below the reservation.
    """

    __slots__ = ("_clock", "_last", "_lock", "_reserved_until_ms", "_worker", "_worker_part")

    def __init__(self, worker: int, *, floor_ms: int, reserved_until_ms: int, clock: Clock = wall_clock_ms) -> None:
        """Starts under a leased worker id.

        Args:
            worker: 0 to 1023.
            floor_ms: First millisecond since EPOCH_MS that may be used.
            reserved_until_ms: Milliseconds at or after this one may not be used until extend() moves it.
            clock: Milliseconds since EPOCH_MS.
        """
        self._clock = clock
        # Callers on several threads are allowed; an uncontended lock costs less than a tenth of a microsecond.
        self._lock = threading.Lock()
        self._last: list[int] = []
        self._reserved_until_ms = 0
        self.switch(worker, floor_ms=floor_ms, reserved_until_ms=reserved_until_ms)

    @property
    def worker(self) -> int:
        """The worker id in use."""
        return self._worker

    @property
    def reserved_until_ms(self) -> int:
        """First millisecond since EPOCH_MS that may not be used."""
        return self._reserved_until_ms

    def now_ms(self) -> int:
        """The latest millisecond issued or, if it is later, the clock's."""
        return max(self._clock(), max(self._last) // _SEQUENCE)

    def shard_of(self, number: int) -> int:
        """Returns the shard, 0 to 127, that an id routes to."""
        return shard_of(number)

    def format_id(self, number: int) -> str:
        """Returns an id as 19 digits, zero-padded."""
        return format_id(number)

    def next(self, shard: int) -> int:
        """Issues an id; never blocks.

        Args:
            shard: 0 to 127.

        Returns:
            An id that no process issues again.

        Raises:
            MeshError: UNAVAILABLE, the reservation ran out; it comes back with ZooKeeper.
            ValueError: There is no such shard.
        """
        if not 0 <= shard < SHARDS:
            raise ValueError("the shard is 0 to 127")
        now_ms = self._clock()
        with self._lock:
            # A slot counts milliseconds and sequence in one number, so a full sequence carries into the millisecond.
            slot = max(now_ms * _SEQUENCE, self._last[shard] + 1)
            ms, sequence = divmod(slot, _SEQUENCE)
            if ms >= self._reserved_until_ms:
                raise MeshError("UNAVAILABLE", part="ids")
            self._last[shard] = slot
            return ((ms << _WORKER_BITS | self._worker_part) << _SEQUENCE_BITS | sequence) << _SHARD_BITS | shard

    def extend(self, reserved_until_ms: int) -> None:
        """Moves the end of the reservation after it was written to the lease; an earlier one changes nothing."""
        with self._lock:
            self._reserved_until_ms = max(self._reserved_until_ms, min(reserved_until_ms, _MS_LIMIT))

    def switch(self, worker: int, *, floor_ms: int, reserved_until_ms: int) -> None:
        """Goes on under another worker id; the arguments are the constructor's."""
        if not 0 <= worker < WORKERS:
            raise ValueError("the worker id is 0 to 1023")
        with self._lock:
            self._worker = self._worker_part = worker
            # Ids stay below 2^63: a reservation past the layout's last millisecond (in 2094) is cut.
            self._reserved_until_ms = min(reserved_until_ms, _MS_LIMIT)
            self._last = [max(floor_ms, 0) * _SEQUENCE - 1] * SHARDS

    def stop(self) -> int:
        """Issues nothing more.

        Returns:
            The first millisecond since EPOCH_MS above everything issued or below the floor, which a successor may use.
        """
        with self._lock:
            unused_ms = max(self._last) // _SEQUENCE + 1
            self._reserved_until_ms = 0
            return unused_ms
