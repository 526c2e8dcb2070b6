"""The lease of a worker id over a ZooKeeper in memory: whatever is lost, late or doubled, no id is issued twice."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from meshkit.errors import MeshError
from meshkit.snowflake import timestamp_ms_of, worker_of
from meshkit.worker_lease import EXTEND_EVERY_MS, RESERVE_AHEAD_MS, NoWorkerId, WorkerLease
from meshkit.zk import Node, NodeAlreadyExists, NodeMissing, VersionConflict, ZooKeeper, ZooKeeperUnavailable

START_MS = 10_000_000
MINUTE_MS = 60_000
HOLDERS = "/mesh/worker-holders"
WORKERS = "/mesh/workers"


class HandClock:
    """A clock that the test sets."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class MemoryZooKeeper(ZooKeeper):
    """One server's nodes in memory. It can be away, and it can do what was asked without answering."""

    def __init__(self, nodes: dict[str, Node] | None = None) -> None:
        super().__init__("nowhere:1")
        self.nodes = {} if nodes is None else nodes
        self.away = False
        self.lose_next_answers = 0
        self.writes = 0

    async def find(self, path: str, *, timeout_s: float | None = None) -> Node | None:
        self._arrive()
        return self.nodes.get(path)

    async def get(self, path: str, *, timeout_s: float | None = None) -> Node:
        if (node := await self.find(path)) is None:
            raise NodeMissing(path)
        return node

    async def ensure_path(self, path: str, *, timeout_s: float | None = None) -> None:
        self._arrive()

    async def children(self, path: str, *, timeout_s: float | None = None) -> list[str]:
        self._arrive()
        return sorted(name.rpartition("/")[2] for name in self.nodes if name.startswith(f"{path}/"))

    async def create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, timeout_s: float | None = None
    ) -> None:
        self._arrive()
        if path in self.nodes:
            raise NodeAlreadyExists(path)
        self.nodes[path] = Node(data, 0, 0, 0, 1 if ephemeral else 0)
        self._answer()

    async def set(self, path: str, data: bytes, *, version: int, timeout_s: float | None = None) -> int:
        self._arrive()
        if path not in self.nodes:
            raise NodeMissing(path)
        if self.nodes[path].version != version:
            raise VersionConflict(path)
        self.writes += 1
        self.nodes[path] = Node(data, version + 1, 0, 0, 0)
        self._answer()
        return version + 1

    async def delete(self, path: str, *, version: int = -1, timeout_s: float | None = None) -> None:
        self._arrive()
        if self.nodes.pop(path, None) is None:
            raise NodeMissing(path)

    @property
    def session_id(self) -> int:
        return 1

    def _arrive(self) -> None:
        if self.away:
            raise ZooKeeperUnavailable("away")

    def _answer(self) -> None:
        if self.lose_next_answers:
            self.lose_next_answers -= 1
            raise ZooKeeperUnavailable("the answer was lost")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def zookeeper() -> MemoryZooKeeper:
    return MemoryZooKeeper()


def lease(zookeeper: ZooKeeper, clock: HandClock, workers: Sequence[int] = (5,)) -> WorkerLease:
    """A lease that is extended by the test alone, and tries its worker ids in order."""
    return WorkerLease(zookeeper, "/mesh", clock=clock, workers=workers, tick_s=3600, shuffle=list.sort)


@pytest.fixture
async def owner(zookeeper: MemoryZooKeeper, clock: HandClock) -> AsyncIterator[WorkerLease]:
    """The owner of worker id 5, which knows of id 6 as well."""
    lease_ = lease(zookeeper, clock, (5, 6))
    await lease_.start()
    async with lease_:
        yield lease_


def lose_holder(zookeeper: MemoryZooKeeper, worker: int) -> None:
    """As if the owner's session had expired."""
    del zookeeper.nodes[f"{HOLDERS}/{worker:04d}"]


def ten(lease_: WorkerLease) -> list[int]:
    return [lease_.ids.next(3) for _ in range(10)]


async def test_a_minute_before_the_next_extension_ten_minutes_are_left(
    zookeeper: MemoryZooKeeper, clock: HandClock, owner: WorkerLease
) -> None:
    clock.now_ms += EXTEND_EVERY_MS
    zookeeper.away = True
    clock.now_ms += 10 * MINUTE_MS - 1
    ids = ten(owner)
    assert {timestamp_ms_of(number) for number in ids} == {clock.now_ms}
    clock.now_ms += 1
    with pytest.raises(MeshError) as refusal:
        owner.ids.next(3)
    assert refusal.value.reason == "UNAVAILABLE"
    with pytest.raises(ZooKeeperUnavailable):
        await owner.extend()
    zookeeper.away = False
    await owner.extend()
    assert ten(owner)
    assert owner.ids.worker == 5


async def test_the_keeper_extends_as_the_clock_goes_on_and_after_it_jumped(
    zookeeper: MemoryZooKeeper, clock: HandClock
) -> None:
    async with WorkerLease(zookeeper, "/mesh", clock=clock, workers=(5,), tick_s=0.001) as kept:
        await kept.start()
        for step_ms in (EXTEND_EVERY_MS, EXTEND_EVERY_MS, 60 * MINUTE_MS):
            clock.now_ms += step_ms
            async with asyncio.timeout(5):
                while kept.ids.reserved_until_ms < clock.now_ms + RESERVE_AHEAD_MS:  # noqa: ASYNC110 - set elsewhere
                    await asyncio.sleep(0.001)
            assert kept.ids.next(0)
        assert zookeeper.writes == 3


async def test_the_keeper_goes_on_after_zookeeper_was_away(
    zookeeper: MemoryZooKeeper, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with WorkerLease(zookeeper, "/mesh", clock=clock, workers=(5,), tick_s=0.001) as kept:
        await kept.start()
        zookeeper.away = True
        clock.now_ms += 12 * MINUTE_MS
        async with asyncio.timeout(5):
            while not caplog.records:  # noqa: ASYNC110 - the keeper logs
                await asyncio.sleep(0.001)
        with pytest.raises(MeshError):
            kept.ids.next(0)
        zookeeper.away = False
        async with asyncio.timeout(5):
            while kept.ids.reserved_until_ms < clock.now_ms:  # noqa: ASYNC110 - set elsewhere
                await asyncio.sleep(0.001)
        assert kept.ids.next(0)
        # Each second of an outage is not worth a line.
        assert len(caplog.records) == 1


async def test_a_successor_starts_where_the_paused_owners_reservation_ends(
    zookeeper: MemoryZooKeeper, clock: HandClock, owner: WorkerLease
) -> None:
    before = ten(owner)
    lose_holder(zookeeper, 5)
    async with lease(zookeeper, clock) as successor:
        await successor.start()
        theirs = ten(successor)
        # The owner wakes up and issues, not knowing that it was replaced.
        after = ten(owner)
        assert {worker_of(number) for number in before + theirs + after} == {5}
        assert max(before + after) < min(theirs)
        assert timestamp_ms_of(theirs[0]) == START_MS + RESERVE_AHEAD_MS
        # Its next extension tells, and it takes another worker id.
        await owner.extend()
        assert owner.ids.worker == 6
        assert len({*before, *theirs, *after, *ten(owner), *ten(successor)}) == 50


async def test_an_owner_that_lost_its_id_and_finds_no_other_goes_on_below_its_reservation_only(
    zookeeper: MemoryZooKeeper, clock: HandClock
) -> None:
    owner = lease(zookeeper, clock)
    await owner.start()
    lose_holder(zookeeper, 5)
    async with lease(zookeeper, clock) as successor:
        await successor.start()
        with pytest.raises(NoWorkerId):
            await owner.extend()
        theirs = ten(successor)
        clock.now_ms = START_MS + RESERVE_AHEAD_MS - 1
        assert max(ten(owner)) < min(theirs)
        clock.now_ms += 1
        with pytest.raises(MeshError):
            owner.ids.next(0)
        with pytest.raises(NoWorkerId):
            await owner.extend()
        assert ten(successor)
    await owner.close()


async def test_a_clean_shutdown_gives_back_all_but_the_last_issued_millisecond(
    zookeeper: MemoryZooKeeper, clock: HandClock
) -> None:
    first = lease(zookeeper, clock)
    await first.start()
    before = ten(first)
    await first.close()
    await first.close()
    with pytest.raises(MeshError):
        first.ids.next(0)
    assert not await zookeeper.children(HOLDERS)
    async with lease(zookeeper, clock) as second:
        await second.start()
        after = ten(second)
    assert timestamp_ms_of(after[0]) == timestamp_ms_of(before[-1]) + 1


async def test_a_shutdown_without_zookeeper_ends_and_the_reservation_stands(
    zookeeper: MemoryZooKeeper, clock: HandClock
) -> None:
    first = lease(zookeeper, clock)
    await first.start()
    before = ten(first)
    zookeeper.away = True
    await first.close()
    zookeeper.away = False
    lose_holder(zookeeper, 5)
    async with lease(zookeeper, clock) as second:
        await second.start()
        assert timestamp_ms_of(second.ids.next(3)) == START_MS + RESERVE_AHEAD_MS
        assert before


async def test_an_extension_whose_answer_was_lost_is_ours_and_not_a_lost_lease(
    zookeeper: MemoryZooKeeper, clock: HandClock, owner: WorkerLease
) -> None:
    clock.now_ms += MINUTE_MS
    zookeeper.lose_next_answers = 1
    with pytest.raises(ZooKeeperUnavailable):
        await owner.extend()
    # Not known to be written, so not used.
    assert owner.ids.reserved_until_ms == START_MS + RESERVE_AHEAD_MS
    clock.now_ms += MINUTE_MS
    await owner.extend()
    assert owner.ids.worker == 5
    assert owner.ids.reserved_until_ms == START_MS + 2 * MINUTE_MS + RESERVE_AHEAD_MS


async def test_a_write_of_ours_that_arrives_late_is_adopted(
    zookeeper: MemoryZooKeeper, clock: HandClock, owner: WorkerLease
) -> None:
    path = f"{WORKERS}/0005"
    node = zookeeper.nodes[path]
    # The server ran an earlier write of this owner after the owner had read the node.
    zookeeper.nodes[path] = Node(node.data, node.version + 1, 0, 0, 0)
    await owner.extend()
    assert owner.ids.worker == 5
    clock.now_ms += MINUTE_MS
    await owner.extend()
    assert owner.ids.reserved_until_ms == clock.now_ms + RESERVE_AHEAD_MS


async def test_a_worker_node_that_vanished_is_a_lost_lease(zookeeper: MemoryZooKeeper, owner: WorkerLease) -> None:
    zookeeper.nodes.clear()
    await owner.extend()
    assert owner.ids.worker == 6


async def test_ids_that_nobody_holds_and_whose_time_is_over_are_preferred(
    zookeeper: MemoryZooKeeper, clock: HandClock
) -> None:
    def node(reserved_until_ms: int) -> Node:
        return Node(b'{"owner": "gone", "reserved_until_ms": %d}' % reserved_until_ms, 0, 0, 0, 0)

    zookeeper.nodes |= {
        f"{WORKERS}/0001": node(START_MS - 1),
        f"{HOLDERS}/0001": Node(b"", 0, 0, 0, 9),
        f"{WORKERS}/0002": Node(b"not for us to understand", 0, 0, 0, 0),
        f"{WORKERS}/0003": node(START_MS + 2000),
        f"{WORKERS}/0004": node(START_MS + 1000),
        f"{WORKERS}/0006": node(START_MS - 1),
    }
    taken = []
    for _ in range(4):
        each = lease(zookeeper, clock, range(1, 7))
        await each.start()
        taken.append(each.ids.worker)
    # Over; unused; then the one that is over soonest. 1 is held and 2 is left alone.
    assert taken == [6, 5, 4, 3]
    with pytest.raises(NoWorkerId):
        await lease(zookeeper, clock, range(1, 7)).start(timeout_s=0.3)


async def test_starting_while_zookeeper_is_away_fails_clearly(zookeeper: MemoryZooKeeper, clock: HandClock) -> None:
    zookeeper.away = True
    with pytest.raises(ZooKeeperUnavailable):
        await lease(zookeeper, clock).start(timeout_s=0.2)


async def test_300_processes_hold_300_ids(zookeeper: MemoryZooKeeper, clock: HandClock) -> None:
    leases = [WorkerLease(zookeeper, "/mesh", clock=clock, tick_s=3600) for _ in range(300)]
    for each in leases:
        await each.start()
    assert len({each.ids.worker for each in leases}) == 300
    for each in leases:
        await each.close()


@dataclass
class Process:
    """A lease with a connection and a clock of its own."""

    lease: WorkerLease
    zookeeper: MemoryZooKeeper
    clock: HandClock


class Fleet:
    """Processes that come, stall and go at random, over two worker ids; all are drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._nodes: dict[str, Node] = {}
        self._now_ms = START_MS
        self._running: list[Process] = []
        self.issued: list[int] = []
        self.replaced = 0

    async def run(self) -> None:
        """Sixty steps, in which clocks differ by seconds and step back, sessions end and answers are lost."""
        steps = (self.start, self.issue, self.issue, self.issue, self.extend, self.extend, self.expire, self.leave)
        for _ in range(60):
            self._now_ms += self._draw.choice((0, 1, 50, 5_000, 400_000))
            for process in self._running:
                process.clock.now_ms = self._now_ms + self._draw.randrange(-3000, 3000)
                process.zookeeper.away = self._draw.random() < 0.2
                process.zookeeper.lose_next_answers = self._draw.choice((0, 0, 0, 1))
            await self._draw.choice(steps)()
        for process in self._running:
            await process.lease.close()

    async def start(self) -> None:
        if len(self._running) == 5:
            return
        zookeeper = MemoryZooKeeper(self._nodes)
        clock = HandClock(self._now_ms + self._draw.randrange(-3000, 3000))
        started = lease(zookeeper, clock, (1, 2))
        with suppress(NoWorkerId, ZooKeeperUnavailable):
            await started.start(timeout_s=0.001)
            self._running.append(Process(started, zookeeper, clock))

    async def issue(self) -> None:
        for process in self._running:
            with suppress(MeshError):
                for _ in range(self._draw.choice((1, 40))):
                    self.issued.append(process.lease.ids.next(self._draw.randrange(2)))

    async def extend(self) -> None:
        for process in self._running:
            before = process.lease.ids.worker
            with suppress(NoWorkerId, ZooKeeperUnavailable):
                await process.lease.extend()
            self.replaced += process.lease.ids.worker != before

    async def expire(self) -> None:
        for path in [path for path in self._nodes if path.startswith(HOLDERS)]:
            del self._nodes[path]

    async def leave(self) -> None:
        if self._running:
            process = self._running.pop(self._draw.randrange(len(self._running)))
            # Half of them are killed: nothing is given back.
            process.zookeeper.away = self._draw.random() < 0.5
            await process.lease.close()


async def test_no_two_processes_ever_issue_the_same_id() -> None:
    issued = replaced = 0
    for seed in range(200):
        fleet = Fleet(seed)
        await fleet.run()
        assert len(fleet.issued) == len(set(fleet.issued)), f"seed {seed}"
        issued += len(fleet.issued)
        replaced += fleet.replaced
    # They did share worker ids, and noticed.
    assert replaced > 100
    assert issued > 50_000
