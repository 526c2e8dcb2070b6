"""Makes a mutation of one shard repeatable: recorded with its effect, replayed to its retries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from coupon_svc.app.ports import Clock, Recorded, RequestKey, Unit
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, Deadlock, DuplicateKey

# A twin costs one rerun, a deadlock or a lost COMMIT reply rarely more.
MAX_RUNS = 4

# Stands in a record for the hash of a request that was reversed, whatever its payload: no SHA-256 is all zeros.
REVERSED_HASH = bytes(32)

_Unit_co = TypeVar("_Unit_co", bound=Unit, covariant=True)


class Units(Protocol[_Unit_co]):
    """Where write transactions begin: a `Store`, or a store with a wider unit."""

    def unit(self, shard: int) -> AbstractAsyncContextManager[_Unit_co]:
        """See `Store.unit`."""


class _TwinWasFaster(Exception):
    """Another run of the same request committed while this one waited for a lock."""


def replay(recorded: Recorded, key: RequestKey, request_hash: bytes) -> bytes:
    """The recorded response, byte for byte.

    Raises:
        MeshError: TRANSACTION_REVERSED when the request was reversed, perhaps before it arrived;
            IDEMPOTENCY_KEY_REUSED when the payload differs.
    """
    if recorded.request_hash == REVERSED_HASH:
        raise MeshError("TRANSACTION_REVERSED", request_id=key.request_id)
    if recorded.request_hash != request_hash:
        raise MeshError("IDEMPOTENCY_KEY_REUSED", request_id=key.request_id)
    return recorded.response


async def refuse_moved(unit: Unit, shards: set[int]) -> None:
    """Holds shards where they are until commit.

    Raises:
        MeshError: SHARD_MOVED when this process may not write one of them.
    """
    for shard in await unit.fence(shards):
        raise MeshError("SHARD_MOVED", shard=str(shard))


async def run_once(
    store: Units[_Unit_co],
    key: RequestKey,
    request_hash: bytes,
    clock: Clock,
    work: Callable[[_Unit_co], Awaitable[bytes]],
    *,
    fenced: Iterable[int] = (),
) -> bytes:
    """Runs `work` in one transaction together with its record, or replays what it answered before.

    `work` gives the response and may be run again after a duplicate key, a deadlock or a COMMIT whose outcome is
    unknown; each run starts with the record, so the effect happens once. `fenced` are shards that it writes besides the
    key's.

    Raises:
        MeshError: IDEMPOTENCY_KEY_REUSED, TRANSACTION_REVERSED, or what `work` raises.
    """
    for _ in range(MAX_RUNS):
        try:
            async with store.unit(key.shard) as unit:
                recorded = (await unit.recorded([key])).get(key)
                if recorded is not None:
                    return replay(recorded, key, request_hash)
                await refuse_moved(unit, {key.shard, *fenced})
                try:
                    response = await work(unit)
                except MeshError as refusal:
                    # The second look, under the locks: what refuses may be the twin's own doing.
                    if await unit.recorded([key]):
                        raise _TwinWasFaster from refusal
                    raise
                await unit.record([(key, Recorded(request_hash, response))], clock())
        except (DuplicateKey, Deadlock, CommitOutcomeUnknown, _TwinWasFaster):
            continue
        return response
    raise MeshError("UNAVAILABLE", part="mysql")
