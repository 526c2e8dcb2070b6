"""Worker ids leased in a real ZooKeeper: paused owners, forced twins, outages."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from meshkit.snowflake import worker_of
from meshkit.worker_lease import NoWorkerId, WorkerLease
from meshkit.zk import ZooKeeper, ZooKeeperState, ZooKeeperUnavailable
from tests.integration.private_redis_zookeeper import PrivateServer, free_port, private_zookeeper, until

# Takes worker id 5 (or 6, once 5 is lost) and prints every id it issues, 20 of them every 20 ms.
OWNER = """
import asyncio, sys
from meshkit.errors import MeshError
from meshkit.worker_lease import WorkerLease
from meshkit.zk import ZooKeeper

async def main(address, root):
    async with ZooKeeper(address, session_timeout_s=1.0) as zookeeper:
        lease = WorkerLease(
            zookeeper, root, workers=(5, 6), shuffle=list.sort,
            reserve_ahead_ms=30_000, extend_every_ms=1_000, tick_s=0.5,
        )
        await lease.start()
        for _ in range(2000):
            print(*(lease.ids.next(9) for _ in range(20)), flush=True)
            await asyncio.sleep(0.02)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    server = private_zookeeper(tmp_path_factory.mktemp("leases"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def zookeeper(server: PrivateServer) -> AsyncIterator[ZooKeeper]:
    async with ZooKeeper(server.address) as client:
        yield client


@pytest.fixture
def root(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}"


def leasing(zookeeper: ZooKeeper, root: str, *workers: int, extend_every_ms: int = 60_000) -> WorkerLease:
    return WorkerLease(
        zookeeper, root, workers=workers, shuffle=list.sort, extend_every_ms=extend_every_ms, tick_s=0.05
    )


async def read_until_worker(output: asyncio.StreamReader, worker: int) -> list[int]:
    """Reads printed ids up to and with the first line of that worker's."""
    ids: list[int] = []
    async with asyncio.timeout(30):
        while not ids or worker_of(ids[-1]) != worker:
            line = await output.readline()
            assert line, "the owner ended"
            ids.extend(int(number) for number in line.split())
    return ids


async def test_a_paused_owner_and_its_successor_issue_different_ids(
    server: PrivateServer, zookeeper: ZooKeeper, root: str
) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER,
        server.address,
        root,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 22,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert owner.stdout
    try:
        before = await read_until_worker(owner.stdout, 5)
        owner.send_signal(signal.SIGSTOP)

        async def thought_dead() -> bool:
            return await zookeeper.find(f"{root}/worker-holders/0005") is None

        await until(thought_dead)
        successor = leasing(zookeeper, root, 5)
        await successor.start()
        theirs = [successor.ids.next(9) for _ in range(5000)]
        owner.send_signal(signal.SIGCONT)
        # It goes on under its old id until it learns that it was replaced; then it has another.
        after = await read_until_worker(owner.stdout, 6)
        theirs += [successor.ids.next(9) for _ in range(5000)]
        await successor.close()
    finally:
        owner.kill()
        await owner.wait()
    assert {worker_of(number) for number in theirs} == {5}
    as_five = [number for number in before + after if worker_of(number) == 5]
    assert len(as_five) > len(before), "the owner issued nothing after its pause; the race did not happen"
    together = before + after + theirs
    assert len(set(together)) == len(together)
    assert max(as_five) < min(theirs)


async def test_two_holders_forced_onto_one_worker_id_part_without_a_common_id(
    server: PrivateServer, zookeeper: ZooKeeper, root: str
) -> None:
    async with ZooKeeper(server.address) as other, leasing(zookeeper, root, 5, 6, extend_every_ms=0) as first:
        await first.start()
        issued: list[int] = []
        await zookeeper.delete(f"{root}/worker-holders/0005")
        async with leasing(other, root, 5) as second:
            await second.start()
            assert (first.ids.worker, second.ids.worker) == (5, 5)
            shared: set[int] = set()

            async def parted() -> bool:
                for each in (first, second):
                    if first.ids.worker == second.ids.worker:
                        shared.add(id(each))
                    issued.extend(each.ids.next(9) for _ in range(100))
                return first.ids.worker != second.ids.worker

            await until(parted)
            await parted()
        assert len(shared) == 2, "the two never shared the id; the race did not happen"
        assert first.ids.worker == 6
    assert len(set(issued)) == len(issued)


async def test_processes_that_start_at_once_take_different_ids(server: PrivateServer, root: str) -> None:
    clients = [ZooKeeper(server.address) for _ in range(5)]
    await asyncio.gather(*(client.start() for client in clients))
    leases = [leasing(client, root, 1, 2, 3, 4, 5) for client in clients]
    await asyncio.gather(*(lease.start() for lease in leases))
    assert sorted(lease.ids.worker for lease in leases) == [1, 2, 3, 4, 5]
    await asyncio.gather(*(lease.close() for lease in leases))
    await asyncio.gather(*(client.stop() for client in clients))


async def test_ids_go_on_while_zookeeper_is_killed_and_are_extended_when_it_is_back(
    tmp_path_factory: pytest.TempPathFactory, root: str
) -> None:
    server = private_zookeeper(tmp_path_factory.mktemp("killed"))
    server.start()
    issued: list[int] = []
    try:
        async with (
            ZooKeeper(server.address, session_timeout_s=2.0) as zookeeper,
            leasing(zookeeper, root, 5, extend_every_ms=100) as lease,
        ):
            await lease.start()
            issued.extend(lease.ids.next(1) for _ in range(100))
            server.kill()

            async def noticed() -> bool:
                issued.extend(lease.ids.next(1) for _ in range(10))
                return zookeeper.state is not ZooKeeperState.CONNECTED

            await until(noticed)
            stood_at = lease.ids.reserved_until_ms
            with pytest.raises(ZooKeeperUnavailable):
                await lease.extend()
            issued.extend(lease.ids.next(1) for _ in range(1000))
            await asyncio.to_thread(server.start)

            async def extended() -> bool:
                issued.extend(lease.ids.next(1) for _ in range(10))
                return lease.ids.reserved_until_ms > stood_at

            await until(extended)
            assert lease.ids.worker == 5
            assert len(set(issued)) == len(issued)
    finally:
        server.kill()


async def test_a_service_that_starts_without_zookeeper_is_told_so_in_time() -> None:
    begun = time.monotonic()
    with pytest.raises(ZooKeeperUnavailable, match="no ZooKeeper answered at"):
        await ZooKeeper(f"127.0.0.1:{free_port()}").start(timeout_s=0.5)
    assert time.monotonic() - begun < 2.5


async def test_a_lease_begun_while_zookeeper_is_frozen_fails_in_time(
    server: PrivateServer, zookeeper: ZooKeeper, root: str
) -> None:
    with server.frozen():
        begun = time.monotonic()
        with pytest.raises(ZooKeeperUnavailable):
            await leasing(zookeeper, root, 5).start(timeout_s=0.5)
        assert time.monotonic() - begun < 0.5 + 2.0
    assert await zookeeper.wait_connected(10.0)


async def test_a_killed_owners_id_is_free_when_its_session_has_expired(
    server: PrivateServer, zookeeper: ZooKeeper, root: str
) -> None:
    owner = ZooKeeper(server.address, session_timeout_s=1.0)
    await owner.start()
    killed = leasing(owner, root, 5)
    await killed.start()
    before = killed.ids.next(0)
    with pytest.raises(NoWorkerId):
        await leasing(zookeeper, root, 5).start(timeout_s=0.3)
    # What a process that is killed leaves behind: its session ends, its reservation stands.
    assert killed._task
    killed._task.cancel()
    await owner.stop()
    async with leasing(zookeeper, root, 5) as successor:
        await successor.start(timeout_s=10.0)
        assert successor.ids.next(0) > before


async def test_two_clients_of_the_usual_kind_just_work(server: PrivateServer, zookeeper: ZooKeeper, root: str) -> None:
    async with (
        await WorkerLease.open(zookeeper, root) as first,
        await WorkerLease.open(zookeeper, root) as second,
    ):
        assert first.ids.worker != second.ids.worker
        assert len({lease.ids.next(3) for lease in (first, second) for _ in range(1000)}) == 2000
