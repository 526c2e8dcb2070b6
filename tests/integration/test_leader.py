"""Elections in a real ZooKeeper: one leader at a time, rising epochs, databases that refuse earlier leaders."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from meshkit.leader import Election, EpochFence, Leadership, LeadershipLost, StaleEpoch
from meshkit.mysql import Database, Databases, ShardMap, ShardRange
from meshkit.zk import ZooKeeper
from tests.integration.private_mariadb import running_mariadb
from tests.integration.private_redis_zookeeper import PrivateServer, private_zookeeper, until

ROOT = "/tests"
CREATE = (
    "CREATE TABLE leader_epoch (job VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, "
    "epoch BIGINT UNSIGNED NOT NULL, PRIMARY KEY (job))"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    server = private_zookeeper(tmp_path_factory.mktemp("zookeeper"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    async with running_mariadb(tmp_path_factory.mktemp("leader")) as mariadb:
        dsn = await mariadb.create("leader_0")
        async with Databases.open(ShardMap.of([ShardRange(0, 127, dsn)])) as databases:
            async with databases.all[0].snapshot(timeout_s=5) as tx:
                await tx.execute(CREATE)
            yield databases.all[0]


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A job of the test's own."""
    return str(request.node.name).replace("_", "-")[-60:]


class Candidate:
    """Stands for election and notes its terms; a term lasts until it is told to end it."""

    def __init__(self, server: PrivateServer, job: str) -> None:
        self.zookeeper = ZooKeeper(server.address, session_timeout_s=2.0)
        self._election = Election(self.zookeeper, ROOT, job)
        self.terms: list[Leadership] = []
        self.working = False
        self.give_up = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def work(self, leadership: Leadership) -> None:
        self.terms.append(leadership)
        self.working = True
        try:
            await self.give_up.wait()
        finally:
            self.working = False

    async def leads(self) -> bool:
        return self.working

    async def idles(self) -> bool:
        return not self.working

    @asynccontextmanager
    async def standing(self) -> AsyncIterator["Candidate"]:
        async with self.zookeeper:
            self.task = asyncio.create_task(self._election.run(self.work))
            try:
                yield self
            finally:
                self.task.cancel()
                with suppress(asyncio.CancelledError):
                    await self.task


async def test_one_of_three_leads_and_the_next_one_takes_over_with_a_later_epoch(
    server: PrivateServer, job: str
) -> None:
    async with (
        Candidate(server, job).standing() as one,
        Candidate(server, job).standing() as two,
        Candidate(server, job).standing() as three,
    ):
        candidates = [one, two, three]
        epochs = []
        for _ in range(len(candidates)):

            async def somebody_leads() -> bool:
                return any(candidate.working for candidate in candidates)

            await until(somebody_leads)
            (leader,) = [candidate for candidate in candidates if candidate.working]
            epochs.append(leader.terms[-1].epoch)
            candidates.remove(leader)
            assert leader.task is not None
            leader.task.cancel()
            await asyncio.wait([leader.task])
            assert not leader.terms[-1].held
        assert epochs == sorted(set(epochs))


async def test_a_leader_stops_at_once_when_its_connection_is_lost_and_leads_again_with_a_later_epoch(
    server: PrivateServer, job: str
) -> None:
    async with Candidate(server, job).standing() as only:
        await until(only.leads)
        first = only.terms[-1]
        server.kill()
        await until(only.idles, timeout_s=5)
        assert not first.held
        with pytest.raises(LeadershipLost):
            first.check()
        server.start()
        await until(only.leads, timeout_s=20)
        assert only.terms[-1].epoch > first.epoch


async def test_a_leader_whose_seat_somebody_removed_leads_no_longer(server: PrivateServer, job: str) -> None:
    async with Candidate(server, job).standing() as only:
        await until(only.leads)
        first = only.terms[-1]
        await only.zookeeper.delete(f"{ROOT}/leaders/{job}/leader")

        async def led_again() -> bool:
            return len(only.terms) > 1 and only.working

        await until(led_again)
        assert not first.held
        assert only.terms[-1].epoch > first.epoch


async def test_work_that_fails_ends_the_term_and_another_one_begins(
    server: PrivateServer, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    candidate = Candidate(server, job)
    failures = 0

    async def fail_once(leadership: Leadership) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            raise ValueError("the work's own defect")
        await candidate.work(leadership)

    async with candidate.zookeeper:
        task = asyncio.create_task(Election(candidate.zookeeper, ROOT, job).run(fail_once))
        await until(candidate.leads)
        task.cancel()
        await asyncio.wait([task])
    assert [record.message for record in caplog.records].count("leader_work_failed") == 1


async def test_a_database_refuses_the_leader_of_before_as_soon_as_the_next_one_was_there(
    database: Database, job: str
) -> None:
    fence = EpochFence()
    before, after = Leadership(job, 7), Leadership(job, 8)
    await fence.claim(database, before, timeout_s=5)
    # A leader may claim as often as it likes.
    await fence.claim(database, before, timeout_s=5)
    async with database.transaction(timeout_s=5) as tx:
        await fence.hold(tx, before)
    await fence.claim(database, after, timeout_s=5)
    # It was paused, so it still believes in its term.
    assert before.held
    with pytest.raises(StaleEpoch):
        async with database.transaction(timeout_s=5) as tx:
            await fence.hold(tx, before)
    with pytest.raises(StaleEpoch) as refused:
        await fence.claim(database, before, timeout_s=5)
    assert refused.value.stored == 8
    async with database.transaction(timeout_s=5) as tx:
        await fence.hold(tx, after)


async def test_a_new_leader_waits_for_the_transaction_of_the_one_before(database: Database, job: str) -> None:
    fence = EpochFence()
    before, after = Leadership(job, 1), Leadership(job, 2)
    await fence.claim(database, before, timeout_s=5)
    async with database.transaction(timeout_s=5) as tx:
        await fence.hold(tx, before)
        claim = asyncio.create_task(fence.claim(database, after, timeout_s=5))
        done, _ = await asyncio.wait([claim], timeout=0.2)
        assert not done
    await claim


async def test_after_zookeeper_lost_its_data_epochs_go_on_from_what_the_database_remembers(
    server: PrivateServer, database: Database, job: str
) -> None:
    fence = EpochFence()
    await fence.claim(database, Leadership(job, 1000), timeout_s=5)
    candidate = Candidate(server, job)
    claimed: list[int] = []

    async def claim(leadership: Leadership) -> None:
        await fence.claim(database, leadership, timeout_s=5)
        claimed.append(leadership.epoch)
        await candidate.give_up.wait()

    async with candidate.zookeeper:
        task = asyncio.create_task(Election(candidate.zookeeper, ROOT, job).run(claim))

        async def was_claimed() -> bool:
            return bool(claimed)

        await until(was_claimed)
        task.cancel()
        await asyncio.wait([task])
    assert claimed[0] > 1000
