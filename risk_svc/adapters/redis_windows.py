"""Owns the sliding windows in Redis: their keys, and the one script that decides and counts."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from meshkit.crypto import Keyring
from meshkit.errors import MeshError
from meshkit.lua import Script
from risk_svc.app.ports import Observer
from risk_svc.domain.operations import Decision
from risk_svc.domain.windows import Check, WindowLimit

if TYPE_CHECKING:
    from redis.asyncio import Redis

HASH_TAG = "{risk}"
"""Stands in every key, so that a batch falls into one slot of a Redis Cluster and one script can serve it whole."""

_DIGEST_BYTES = 16


class RedisWindows:
    """Sliding windows in Redis; implements the port Windows.

    Keys hold digests only, made with the keyring's primary key, so a new primary key starts with empty windows.

    Args:
        redis: A client that does not retry: a repeated batch is harmless, but it costs the caller's time.
        keyring: The key that hides subjects and operation ids.
        replay_ttl_ms: How long a decision is remembered.
        observer: Hears durations and failures.
        clock_ms: The time in milliseconds; None for Redis' own clock, which all replicas of the service then share, so
            that a service whose clock is wrong neither empties windows nor fills them.
    """

    def __init__(
        self,
        redis: "Redis",
        keyring: Keyring,
        *,
        replay_ttl_ms: int,
        observer: Observer,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self._redis = redis
        # One subkey, made once: BLAKE2b under it (RFC 7693) is a MAC too, and a batch needs hundreds.
        _, self._digest_key = keyring.mac("risk-windows", b"")
        self._replay_ttl_ms = replay_ttl_ms
        self._observer = observer
        self._clock_ms = clock_ms
        self._script = Script.load("risk_svc", "lua/assess-n.lua")

    async def assess(self, checks: Sequence[Check], *, timeout_s: float) -> list[Decision]:
        """Decides on each check in order. See risk_svc.app.ports.Windows."""
        keys, args = self._call_of(checks)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                answers = await self._script(self._redis, keys, args)
        except (TimeoutError, RedisTimeoutError) as error:
            raise self._unavailable("timeout") from error
        except ResponseError as error:
            raise self._unavailable("refused") from error
        except (RedisConnectionError, RedisError, OSError) as error:
            raise self._unavailable("connection") from error
        self._observer.script_ran(time.monotonic() - started_s)
        return [_decision(answer) for answer in answers]

    def _unavailable(self, cause: str) -> MeshError:
        self._observer.windows_failed(cause)
        return MeshError("WINDOWS_UNAVAILABLE")

    def _call_of(self, checks: Sequence[Check]) -> tuple[list[str], list[str | int]]:
        """Lays a batch out as KEYS and ARGV of the script."""
        keys = [self._key("o", check.identity) for check in checks]
        limits: dict[WindowLimit, int] = {}
        windows: dict[tuple[WindowLimit, tuple[str, ...]], int] = {}
        steps: list[int] = []
        for check in checks:
            steps.append(len(check.steps))
            for step in check.steps:
                ordinal = limits.setdefault(step.limit, len(limits) + 1)
                index = windows.get((step.limit, step.subject))
                if index is None:
                    keys.append(self._key(f"w:{step.limit.rule}", step.subject))
                    index = windows[step.limit, step.subject] = len(keys)
                steps += (int(step.effect), ordinal, index)
        now_ms = "" if self._clock_ms is None else self._clock_ms()
        args: list[str | int] = [now_ms, self._replay_ttl_ms, len(checks), " ".join(map(str, steps))]
        for limit in limits:
            args += (limit.rule, limit.limit, limit.window_ms, limit.bucket_ms)
        return keys, args

    def _key(self, kind: str, parts: tuple[str, ...]) -> str:
        # Each part has its length before it, so no two lists of parts read the same.
        data = "".join([f"{len(part)}:{part}" for part in (kind, *parts)]).encode()
        digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=self._digest_key).digest()
        return f"{HASH_TAG}:{kind}:{base64.urlsafe_b64encode(digest)[:-2].decode()}"


def _decision(answer: bytes | str) -> Decision:
    text = answer.decode() if isinstance(answer, bytes) else answer
    return Decision(refused_by=tuple(text[1:].split(",")) if len(text) > 1 else (), replayed=text[0] == "1")
