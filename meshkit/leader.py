"""Owns the election of one process among many to do a job, and the epoch that fences its writes in the databases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

from meshkit.mysql import DuplicateKey, Transaction
from meshkit.queries import load_queries
from meshkit.zk import (
    Node,
    NodeAlreadyExists,
    NodeMissing,
    VersionConflict,
    Watch,
    ZooKeeper,
    ZooKeeperError,
    ZooKeeperState,
)

_log = logging.getLogger(__name__)

# A candidate looks again this often even when no watch told it that the leader is gone.
_LOOK_EVERY_S: Final = 5.0
_RETRY_S: Final = 0.2
# Reading and raising the counter meets other candidates at most a few times.
_MAX_RAISES: Final = 100
_MAX_CLAIMS: Final = 4


class LeadershipLost(Exception):
    """This process leads no longer: it writes nothing more."""


class StaleEpoch(LeadershipLost):
    """The database has seen a later epoch than this leader's.

    Attributes:
        stored: The latest epoch the database knows.
    """

    def __init__(self, job: str, *, epoch: int, stored: int) -> None:
        super().__init__(f"{job}: the leader of epoch {epoch} writes where epoch {stored} was seen")
        self.stored = stored


class Leadership:
    """One term of office.

    Attributes:
        job: What is led.
        epoch: Rises from one term to the next; each write carries it (see `EpochFence`).
    """

    def __init__(self, job: str, epoch: int) -> None:
        self.job = job
        self.epoch = epoch
        self._held = True
        self._on_revoke: Callable[[], object] = lambda: None

    @property
    def held(self) -> bool:
        """Whether it lasts; False at once when the connection to ZooKeeper is lost."""
        return self._held

    def check(self) -> None:
        """Lets a write go on only while the term lasts.

        Raises:
            LeadershipLost: It is over.
        """
        if not self._held:
            raise LeadershipLost(f"{self.job}: the term of epoch {self.epoch} is over")

    def revoke(self) -> None:
        """Ends it and stops its work; repeatable."""
        if self._held:
            self._held = False
            self._on_revoke()

    def when_revoked(self, stop: Callable[[], object]) -> None:
        """Has `stop` called when the term ends, now if it is over."""
        self._on_revoke = stop
        if not self._held:
            stop()


Work = Callable[[Leadership], Awaitable[None]]


class Election:
    """Lets one process at a time do a job, for as long as `run` runs.

    `<root>/leaders/<job>` counts the epochs, its ephemeral child `leader` belongs to whoever leads. Work is cancelled
    at once when the connection is SUSPENDED: the session may be over, and somebody else may lead. A process that was
    paused does not know that yet when it wakes up, so each of its transactions holds the epoch's row as well.
    """

    def __init__(self, zookeeper: ZooKeeper, root: str, job: str, *, identity: str = "") -> None:
        """Prepares a candidate.

        Args:
            zookeeper: A started client.
            root: Parent of the election's nodes, such as `/couponmesh`.
            job: Names the job; at most 64 lower-case letters, digits and hyphens.
            identity: Shown in the leader's node, for people.
        """
        self._zookeeper = zookeeper
        self._job = job
        self._counter = f"{root}/leaders/{job}"
        self._seat = f"{self._counter}/leader"
        self._identity = identity.encode()
        self._changed = asyncio.Event()
        # Counts losses of the connection, so that an election during which it was lost does not count.
        self._losses = 0
        self._current: Leadership | None = None
        self._seat_zxid = 0

    async def run(self, work: Work) -> None:
        """Goes on until cancelled: waits to be elected, works, and stands again when the term or the work is over.

        Args:
            work: The job of one term; it is cancelled when the term ends. What it raises ends the term.
        """
        end_listening = self._zookeeper.on_state(self._on_state)
        watch: Watch | None = None
        try:
            while True:
                try:
                    watch = watch or await self._watch_seat()
                    leadership = await self._be_elected()
                except ZooKeeperError:
                    await asyncio.sleep(_RETRY_S)
                    continue
                await self._serve(leadership, work)
        finally:
            end_listening()
            if watch is not None:
                await watch.close()

    async def _watch_seat(self) -> Watch:
        await self._zookeeper.ensure_path(self._counter)
        return await self._zookeeper.watch_data(self._seat, self._on_seat)

    async def _be_elected(self) -> Leadership:
        """Takes the seat as soon as it is free."""
        while True:
            self._changed.clear()
            losses = self._losses
            try:
                await self._zookeeper.create(self._seat, self._identity, ephemeral=True)
            except NodeAlreadyExists:
                await self._wait_for_seat()
                continue
            except NodeMissing:
                await self._zookeeper.ensure_path(self._counter)
                continue
            epoch = await self._raise_epoch(above=0)
            seat = await self._zookeeper.find(self._seat)
            if seat is None or not self._is_mine(seat) or losses != self._losses:
                continue
            self._seat_zxid = seat.created_zxid
            self._current = Leadership(self._job, epoch)
            _log.info("leader_elected", extra={"job": self._job, "epoch": epoch})
            return self._current

    async def _wait_for_seat(self) -> None:
        seat = await self._zookeeper.find(self._seat)
        if seat is None:
            return
        if self._is_mine(seat):
            # Left by an election whose reply was lost, or by a term that a lost connection ended.
            with suppress(NodeMissing, VersionConflict):
                await self._zookeeper.delete(self._seat, version=seat.version)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._changed.wait()

    async def _raise_epoch(self, *, above: int) -> int:
        """Counts on from the greater of the last epoch and `above`."""
        for _ in range(_MAX_RAISES):
            node = await self._zookeeper.get(self._counter)
            epoch = max(int(node.data or b"0"), above) + 1
            try:
                await self._zookeeper.set(self._counter, str(epoch).encode(), version=node.version)
            except VersionConflict:
                continue
            return epoch
        raise ZooKeeperError(f"{self._counter} is written all the time")

    async def _serve(self, leadership: Leadership, work: Work) -> None:
        task = asyncio.ensure_future(work(leadership))
        leadership.when_revoked(task.cancel)
        try:
            await asyncio.wait([task])
        finally:
            leadership.revoke()
            task.cancel()
            await asyncio.wait([task])
            self._current = None
            await self._resign()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("leader_work_failed", extra={"job": leadership.job, "epoch": leadership.epoch}, exc_info=error)
        if isinstance(error, StaleEpoch):
            # ZooKeeper lost its data or was replaced: its counter goes on from what the databases remember.
            with suppress(ZooKeeperError):
                await self._raise_epoch(above=error.stored)
        _log.info("leader_resigned", extra={"job": leadership.job, "epoch": leadership.epoch})
        await asyncio.sleep(_RETRY_S)

    async def _resign(self) -> None:
        # Without an answer the session's end frees the seat.
        with suppress(ZooKeeperError):
            seat = await self._zookeeper.find(self._seat)
            if seat is not None and self._is_mine(seat):
                await self._zookeeper.delete(self._seat, version=seat.version)

    def _is_mine(self, seat: Node) -> bool:
        return seat.owner_session == self._zookeeper.session_id

    def _on_state(self, state: ZooKeeperState) -> None:
        if state is not ZooKeeperState.CONNECTED:
            self._losses += 1
            if self._current is not None:
                self._current.revoke()
        self._changed.set()

    def _on_seat(self, seat: Node | None) -> None:
        if self._current is not None and (seat is None or seat.created_zxid != self._seat_zxid):
            self._current.revoke()
        self._changed.set()


class FencedDatabase(Protocol):
    """What a fence needs of `meshkit.mysql.Database`, which has a table leader_epoch(job, epoch)."""

    def transaction(self, *, timeout_s: float) -> AbstractAsyncContextManager[Transaction]:
        """One transaction."""


class EpochFence:
    """Refuses writes of a leader whose successor has been at the database."""

    def __init__(self) -> None:
        self._queries: Mapping[str, str] = load_queries("meshkit", "sql/leader.sql")

    async def claim(self, database: FencedDatabase, leadership: Leadership, *, timeout_s: float) -> None:
        """Tells a database that this term has begun; writes of earlier ones are refused from then on.

        Raises:
            StaleEpoch: A later term was there before.
        """
        claim = {"job": leadership.job, "epoch": leadership.epoch}
        for _ in range(_MAX_CLAIMS):
            leadership.check()
            try:
                async with database.transaction(timeout_s=timeout_s) as tx:
                    if await tx.execute(self._queries["raise_epoch"], claim):
                        return
                    row = await tx.fetch_one(self._queries["get_epoch"], claim)
                    if row is None:
                        await tx.execute(self._queries["insert_epoch"], claim)
                        return
            except DuplicateKey:
                # Another term's leader was faster with the first row.
                continue
            if row[0] != leadership.epoch:
                raise StaleEpoch(leadership.job, epoch=leadership.epoch, stored=row[0])
            return
        raise LeadershipLost(f"{leadership.job}: others claim the first epoch all the time")

    async def hold(self, tx: Transaction, leadership: Leadership) -> None:
        """The first statement of each of the leader's transactions: holds the epoch until commit.

        Raises:
            LeadershipLost: The term is over, by what this process or by what the database knows.
        """
        leadership.check()
        row = await tx.fetch_one(self._queries["hold_epoch"], {"job": leadership.job})
        stored = 0 if row is None else row[0]
        if stored != leadership.epoch:
            raise StaleEpoch(leadership.job, epoch=leadership.epoch, stored=stored)
