"""Owns short leases on keys in Redis, which keep work from being done twice and decide nothing."""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from meshkit.lua import Script

_log = logging.getLogger(__name__)

FENCE_KEY: Final = "LOCK_FENCE"
_MAX_DOUBTFUL: Final = 4096
_SWEEP_BATCH: Final = 512
# After this many sweeps that Redis answered, a command that lay in one of its sockets before has run and was undone.
_SWEEPS: Final = 2


class LocksUnavailable(Exception):
    """Redis doesn't answer; nothing is known to be locked."""


class LockEvent(enum.Enum):
    """What happened to keys, for metrics."""

    ACQUIRED = "acquired"
    CONTENDED = "contended"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Token:
    """Proof of one acquisition of one key.

    Attributes:
        value: Random, never used again.
        fence: Rises from one holder of a key to the next, until Redis loses its data. It is for diagnosis only.
    """

    value: str = field(repr=False)
    fence: int


@dataclass(slots=True)
class _Doubt:
    """A lock that may be set though nobody holds it.

    Attributes:
        key: The lock.
        sweeps: How many times Redis has answered an attempt to release it.
    """

    key: str
    sweeps: int = 0


class RedisLocks:
    """Acquires and releases many keys in one pipeline, each key by a command of its own.

    A lock is `SET key token NX PX lease`; it is released by a script that compares the token, so a holder whose lease
    ran out can't release the next one's lock. Every acquisition has a token of its own.

    When Redis fails or is slow, acquire() raises, and from then on it raises at once until a probe in the background
    got an answer. Locks that may have been set or may not have been released meanwhile are remembered and released
    first.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_ms: int = 3000,
        timeout_s: float = 0.1,
        probe_every_s: float = 0.2,
        on_event: Callable[[LockEvent, int], None] | None = None,
    ) -> None:
        """Prepares locks on one Redis server.

        Args:
            redis: A client from open_redis(); it stays the caller's.
            lease_ms: How long a lock holds if it is never released.
            timeout_s: Bound of acquire() and of release().
            probe_every_s: Pause between two probes of a Redis that failed.
            on_event: Called with an event and the number of keys it happened to.
        """
        self._redis = redis
        self._lease_ms = lease_ms
        self._timeout_s = timeout_s
        self._probe_every_s = probe_every_s
        self._on_event = on_event or (lambda _event, _count: None)
        self._release = Script.load("meshkit", "lua/lock_release-1.lua")
        self._available = True
        # Key and number of answered sweeps by token.
        self._doubtful: OrderedDict[str, _Doubt] = OrderedDict()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the background probe; repeatable."""
        self._closed = True
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            await asyncio.wait([sweeper])

    @property
    def available(self) -> bool:
        """Whether acquire() asks Redis at all now."""
        return self._available

    async def acquire(self, keys: Sequence[str]) -> dict[str, Token | None]:
        """Tries each key once.

        Args:
            keys: Distinct keys such as `LOCK_COUPON:{…}`.

        Returns:
            For each key its token, or None where someone else holds it.

        Raises:
            LocksUnavailable: Redis is away or too slow; at once while that is known.
        """
        if not keys:
            return {}
        if not self._available:
            self._on_event(LockEvent.UNAVAILABLE, len(keys))
            raise LocksUnavailable("Redis did not answer a moment ago")
        values = dict(zip(keys, _tokens(len(keys)), strict=True))
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, value, nx=True, px=self._lease_ms)
        # Behind the locks, so that a later holder of a key always has the higher number.
        pipeline.incr(FENCE_KEY)
        try:
            async with asyncio.timeout(self._timeout_s):
                *replies, fence = await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error, values)
            self._on_event(LockEvent.UNAVAILABLE, len(keys))
            raise LocksUnavailable("Redis did not answer") from error
        except asyncio.CancelledError:
            self._doubt(values)
            raise
        result = {
            key: Token(value, fence) if reply else None
            for (key, value), reply in zip(values.items(), replies, strict=True)
        }
        acquired = sum(token is not None for token in result.values())
        if acquired:
            self._on_event(LockEvent.ACQUIRED, acquired)
        if acquired < len(result):
            self._on_event(LockEvent.CONTENDED, len(result) - acquired)
        return result

    async def release(self, tokens: Mapping[str, Token]) -> None:
        """Releases what is still held under these tokens; never raises for Redis's sake."""
        held = {key: token.value for key, token in tokens.items()}
        if not held:
            return
        if not self._available:
            self._doubt(held)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._run_release(held)
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error, held)
        except asyncio.CancelledError:
            self._doubt(held)
            raise

    async def _run_release(self, held: Mapping[str, str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in held.items():
            self._release.queue(pipeline, [key], [value])
        await pipeline.execute()

    def _fail(self, error: BaseException, values: Mapping[str, str]) -> None:
        if self._available:
            _log.warning("locks_unavailable", extra={"error": type(error).__name__})
        self._available = False
        self._doubt(values)

    def _doubt(self, values: Mapping[str, str]) -> None:
        """Remembers locks that may be set, keyed by token, and has them released in the background."""
        for key, value in values.items():
            self._doubtful[value] = _Doubt(key)
        while len(self._doubtful) > _MAX_DOUBTFUL:
            # What is forgotten runs out by its lease.
            self._doubtful.popitem(last=False)
        if self._sweeper is None and not self._closed:
            self._sweeper = asyncio.create_task(self._sweep(), name="locks-sweep")

    async def _sweep(self) -> None:
        """Releases what is in doubt as soon as Redis answers, then lets acquire() ask again."""
        answered = False
        while self._doubtful or not answered:
            batch = dict(itertools.islice(self._doubtful.items(), _SWEEP_BATCH))
            try:
                # Connecting anew may be part of it, so it gets a little longer than acquire() does.
                async with asyncio.timeout(self._timeout_s + self._probe_every_s):
                    await self._run_sweep(batch)
            except (RedisError, OSError, TimeoutError):
                answered = False
                self._available = False
                await asyncio.sleep(self._probe_every_s)
                continue
            answered = True
            for value, doubt in batch.items():
                doubt.sweeps += 1
                if doubt.sweeps >= _SWEEPS:
                    self._doubtful.pop(value, None)
        if not self._available:
            _log.info("locks_available")
        self._available = True
        self._sweeper = None

    async def _run_sweep(self, batch: Mapping[str, _Doubt]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.ping()
        for value, doubt in batch.items():
            self._release.queue(pipeline, [doubt.key], [value])
        await pipeline.execute()


def _tokens(count: int) -> list[str]:
    """As many distinct tokens, from one draw of randomness."""
    draw = secrets.token_hex(16)
    return [f"{draw}:{position}" for position in range(count)]
