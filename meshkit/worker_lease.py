"""Owns the lease of a snowflake worker id in ZooKeeper: who may issue which milliseconds under it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from meshkit.snowflake import WORKERS, Clock, SnowflakeIds, wall_clock_ms
from meshkit.zk import (
    Node,
    NodeAlreadyExists,
    NodeMissing,
    VersionConflict,
    ZooKeeper,
    ZooKeeperError,
    ZooKeeperUnavailable,
)

_log = logging.getLogger(__name__)

EXTEND_EVERY_MS: Final = 60_000
RESERVE_AHEAD_MS: Final = 11 * 60_000
"""Ten minutes that ids go on without ZooKeeper, and the minute between two extensions."""

_TICK_S: Final = 1.0
_MAX_READS: Final = 64
_TAKE_RETRY_S: Final = 0.25
_CLOSE_TIMEOUT_S: Final = 2.0


class NoWorkerId(Exception):
    """Every worker id is held by another process."""


@dataclass(frozen=True, slots=True)
class _Reservation:
    """What a worker's node says: who wrote it, and the first millisecond that a successor may use."""

    owner: str
    reserved_until_ms: int

    @classmethod
    def of(cls, node: Node) -> _Reservation | None:
        """Reads a node; None when it isn't ours to understand, which leaves its worker id alone."""
        try:
            fields = json.loads(node.data)
            return cls(owner=str(fields["owner"]), reserved_until_ms=int(fields["reserved_until_ms"]))
        except (ValueError, TypeError, KeyError):
            return None

    def to_bytes(self) -> bytes:
        return json.dumps({"owner": self.owner, "reserved_until_ms": self.reserved_until_ms}).encode()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A worker id that may be taken; a version of None means that its node has to be created."""

    worker: int
    version: int | None
    floor_ms: int


@dataclass(frozen=True, slots=True)
class _Taken:
    """A worker id whose compare-and-set (or creation) succeeded."""

    worker: int
    version: int
    floor_ms: int
    reserved_until_ms: int


class WorkerLease:
    """Holds one worker id for this process and keeps its reservation ahead of the clock.

    `<root>/workers/NNNN` is persistent and versioned and holds `reserved_until_ms`. Only a compare-and-set moves it,
    and only after it succeeded are the milliseconds below it issued; who takes the id over starts at the value that his
    own compare-and-set replaced. So it does not matter whether an owner was paused, cut off or thought dead.
    `<root>/worker-holders/NNNN` is ephemeral and only makes newcomers prefer ids that nobody uses.

    A lost compare-and-set means that someone took the id over. This process then goes on below its old reservation,
    which stays its own, until it has another id.
    """

    def __init__(
        self,
        zookeeper: ZooKeeper,
        root: str,
        *,
        clock: Clock = wall_clock_ms,
        workers: Sequence[int] = range(WORKERS),
        reserve_ahead_ms: int = RESERVE_AHEAD_MS,
        extend_every_ms: int = EXTEND_EVERY_MS,
        tick_s: float = _TICK_S,
        shuffle: Callable[[list[int]], None] = random.shuffle,
    ) -> None:
        """Prepares a lease; start() takes one.

        Args:
            zookeeper: A started client.
            root: Parent of the lease's nodes, such as `/couponmesh`.
            clock: Milliseconds since snowflake.EPOCH_MS.
            workers: Worker ids to choose from.
            reserve_ahead_ms: How far an extension pushes the reservation ahead of the clock.
            extend_every_ms: How much of it may be used up before it is extended.
            tick_s: How often that is looked at, and how soon a failed extension is tried again.
            shuffle: Puts candidates in a random order.
        """
        self._zookeeper = zookeeper
        self._nodes = f"{root}/workers"
        self._holders = f"{root}/worker-holders"
        self._clock = clock
        self._workers = workers
        self._reserve_ahead_ms = reserve_ahead_ms
        self._extend_every_ms = extend_every_ms
        self._tick_s = tick_s
        self._shuffle = shuffle
        self._owner = secrets.token_hex(16)
        # None while a write of ours has no known outcome; then the node is read before the next one.
        self._version: int | None = None
        self._ids: SnowflakeIds | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, zookeeper: ZooKeeper, root: str, *, timeout_s: float = 15.0) -> Self:
        """Takes a worker id with the usual figures; see start().

        Returns:
            The lease; its `ids` issue at once.
        """
        lease = cls(zookeeper, root)
        await lease.start(timeout_s=timeout_s)
        return lease

    async def start(self, *, timeout_s: float = 15.0) -> None:
        """Takes a worker id and begins to extend its reservation in the background.

        Args:
            timeout_s: Bound of the whole call; within it, dead holders' sessions are given time to expire.

        Raises:
            ZooKeeperUnavailable: ZooKeeper did not answer in time.
            NoWorkerId: All ids are held.
        """
        all_held: NoWorkerId | None = None
        taken: _Taken | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while taken is None:
                    try:
                        taken = await self._take(avoid=None)
                    except NoWorkerId as error:
                        all_held = error
                        await asyncio.sleep(_TAKE_RETRY_S)
        except TimeoutError as error:
            raise all_held or ZooKeeperUnavailable(f"no worker id within {timeout_s} s") from error
        self._version = taken.version
        self._ids = SnowflakeIds(
            taken.worker, floor_ms=taken.floor_ms, reserved_until_ms=taken.reserved_until_ms, clock=self._clock
        )
        self._task = asyncio.create_task(self._keep(), name="worker-lease")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def ids(self) -> SnowflakeIds:
        """Issues ids under the lease; the object stays the same when the worker id changes."""
        if self._ids is None:
            raise RuntimeError("the lease was not started")
        return self._ids

    async def close(self) -> None:
        """Issues nothing more and gives the reservation back down to the last issued millisecond; repeatable."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        unused_ms = self.ids.stop()
        # Without ZooKeeper the reservation stays, which only makes the next owner choose another id or start later.
        with suppress(ZooKeeperError, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                if self._version is not None or await self._adopt():
                    assert self._version is not None
                    given_back = _Reservation(self._owner, unused_ms).to_bytes()
                    await self._zookeeper.set(self._node(self.ids.worker), given_back, version=self._version)
                    await self._unmark_held(self.ids.worker)

    async def extend(self) -> None:
        """Pushes the reservation ahead now, or takes another worker id if this one was lost; the keeper calls it.

        Raises:
            ZooKeeperError: No answer; what was reserved before stays usable.
            NoWorkerId: The id was lost and all others are held.
        """
        if self._version is None and not await self._adopt():
            await self._replace()
            return
        until_ms = max(self.ids.now_ms() + self._reserve_ahead_ms, self.ids.reserved_until_ms)
        expected, self._version = self._version, None
        assert expected is not None
        try:
            self._version = await self._zookeeper.set(
                self._node(self.ids.worker), _Reservation(self._owner, until_ms).to_bytes(), version=expected
            )
        except (VersionConflict, NodeMissing):
            # An earlier write of ours that was thought lost conflicts as well; then the node still names us.
            if not await self._adopt():
                await self._replace()
            return
        self.ids.extend(until_ms)
        await self._mark_held(self.ids.worker)

    async def _adopt(self) -> bool:
        """Learns what our last write left in the node; False if the worker id is no longer ours."""
        node = await self._zookeeper.find(self._node(self.ids.worker))
        reservation = _Reservation.of(node) if node is not None else None
        if node is None or reservation is None or reservation.owner != self._owner:
            return False
        self._version = node.version
        self.ids.extend(reservation.reserved_until_ms)
        return True

    async def _replace(self) -> None:
        lost = self.ids.worker
        taken = await self._take(avoid=lost)
        self._version = taken.version
        self.ids.switch(taken.worker, floor_ms=taken.floor_ms, reserved_until_ms=taken.reserved_until_ms)
        _log.warning("worker_lease_replaced", extra={"lost_worker": lost, "worker": taken.worker})

    async def _keep(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._tick_s)
            left_ms = self.ids.reserved_until_ms - self.ids.now_ms()
            if left_ms > self._reserve_ahead_ms - self._extend_every_ms and self._version is not None:
                continue
            try:
                await self.extend()
                failing = False
            except (ZooKeeperError, NoWorkerId) as error:
                if not failing:
                    _log.warning(
                        "worker_lease_not_extended",
                        extra={"error": type(error).__name__, "reserved_s": left_ms // 1000},
                    )
                failing = True

    async def _take(self, *, avoid: int | None) -> _Taken:
        await self._zookeeper.ensure_path(self._nodes)
        await self._zookeeper.ensure_path(self._holders)
        for candidate in await self._candidates(avoid):
            until_ms = max(self._clock(), candidate.floor_ms) + self._reserve_ahead_ms
            data = _Reservation(self._owner, until_ms).to_bytes()
            path = self._node(candidate.worker)
            version = 0
            # If the outcome of this write stays unknown, the caller fails or comes again, and the id rests a while.
            try:
                if candidate.version is None:
                    await self._zookeeper.create(path, data)
                else:
                    version = await self._zookeeper.set(path, data, version=candidate.version)
            except (VersionConflict, NodeMissing, NodeAlreadyExists):
                continue
            await self._mark_held(candidate.worker)
            return _Taken(candidate.worker, version, candidate.floor_ms, until_ms)
        raise NoWorkerId(f"all {len(self._workers)} worker ids under {self._nodes} are held")

    async def _candidates(self, avoid: int | None) -> list[_Candidate]:
        """Ids without a holder: those whose reservation is over, then unused ones, then the soonest to be over."""
        held = set(await self._zookeeper.children(self._holders))
        existing = set(await self._zookeeper.children(self._nodes))
        free = [worker for worker in self._workers if _name(worker) not in held and worker != avoid]
        self._shuffle(free)
        unused = [_Candidate(worker, None, 0) for worker in free if _name(worker) not in existing]
        read: list[_Candidate] = []
        for worker in [worker for worker in free if _name(worker) in existing][:_MAX_READS]:
            node = await self._zookeeper.find(self._node(worker))
            reservation = _Reservation.of(node) if node is not None else None
            if node is not None and reservation is not None:
                read.append(_Candidate(worker, node.version, reservation.reserved_until_ms))
        now_ms = self._clock()
        rested = [candidate for candidate in read if candidate.floor_ms <= now_ms]
        reserved = sorted((c for c in read if c.floor_ms > now_ms), key=lambda candidate: candidate.floor_ms)
        return [*rested, *unused, *reserved]

    async def _mark_held(self, worker: int) -> None:
        # A holder's node is a hint: without it, a newcomer may take the id over, and this process takes another.
        with suppress(ZooKeeperError):
            await self._zookeeper.create(self._holder(worker), ephemeral=True)

    async def _unmark_held(self, worker: int) -> None:
        holder = await self._zookeeper.find(self._holder(worker))
        if holder is not None and holder.owner_session == self._zookeeper.session_id:
            await self._zookeeper.delete(self._holder(worker))

    def _node(self, worker: int) -> str:
        return f"{self._nodes}/{_name(worker)}"

    def _holder(self, worker: int) -> str:
        return f"{self._holders}/{_name(worker)}"


def _name(worker: int) -> str:
    return f"{worker:04d}"
