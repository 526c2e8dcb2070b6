"""The ZooKeeper client against a real server: bounded waits, watches that survive, nothing left behind."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from meshkit.zk import (
    Node,
    NodeAlreadyExists,
    NodeMissing,
    NodeNotEmpty,
    VersionConflict,
    ZooKeeper,
    ZooKeeperState,
    ZooKeeperUnavailable,
)
from tests.integration.private_redis_zookeeper import PrivateServer, free_port, private_zookeeper, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    server = private_zookeeper(tmp_path_factory.mktemp("zookeeper"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def zookeeper(server: PrivateServer, request: pytest.FixtureRequest) -> AsyncIterator[ZooKeeper]:
    async with ZooKeeper(server.address, session_timeout_s=2.0) as client:
        yield client


@pytest.fixture
async def path(zookeeper: ZooKeeper, request: pytest.FixtureRequest) -> str:
    """A node of the test's own, not yet created, under an existing parent."""
    parent = f"/tests/{request.node.name}"
    await zookeeper.ensure_path(parent)
    return f"{parent}/node"


class Seen:
    """Collects what a watch delivers, and from which thread."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.threads: set[int] = set()

    def __call__(self, node: Node | None) -> None:
        self.values.append(None if node is None else node.data)
        self.threads.add(threading.get_ident())

    async def latest_is(self, data: bytes | None, *, within_s: float) -> None:
        async def arrived() -> bool:
            return bool(self.values) and self.values[-1] == data

        await until(arrived, timeout_s=within_s)


async def test_a_node_is_created_read_written_and_deleted(zookeeper: ZooKeeper, path: str) -> None:
    assert await zookeeper.find(path) is None
    await zookeeper.create(path, b"one")
    assert (await zookeeper.get(path)).version == 0
    assert await zookeeper.set(path, b"two", version=0) == 1
    node = await zookeeper.get(path)
    assert (node.data, node.version, node.owner_session) == (b"two", 1, 0)
    await zookeeper.create(f"{path}/child")
    assert await zookeeper.children(path) == ["child"]
    with pytest.raises(NodeNotEmpty):
        await zookeeper.delete(path)
    await zookeeper.delete(f"{path}/child")
    await zookeeper.delete(path, version=1)
    with pytest.raises(NodeMissing):
        await zookeeper.get(path)


async def test_a_compare_and_set_on_another_version_changes_nothing(zookeeper: ZooKeeper, path: str) -> None:
    await zookeeper.create(path, b"mine")
    await zookeeper.set(path, b"theirs", version=0)
    with pytest.raises(VersionConflict):
        await zookeeper.set(path, b"mine again", version=0)
    with pytest.raises(VersionConflict):
        await zookeeper.delete(path, version=0)
    assert (await zookeeper.get(path)).data == b"theirs"


async def test_what_exists_or_is_missing_is_said(zookeeper: ZooKeeper, path: str) -> None:
    await zookeeper.create(path)
    with pytest.raises(NodeAlreadyExists):
        await zookeeper.create(path)
    with pytest.raises(NodeMissing):
        await zookeeper.create(f"{path}/a/b")
    with pytest.raises(NodeMissing):
        await zookeeper.set(f"{path}/a", b"", version=-1)
    with pytest.raises(NodeMissing):
        await zookeeper.children(f"{path}/a")
    await zookeeper.ensure_path(f"{path}/a/b")
    await zookeeper.ensure_path(f"{path}/a/b")
    assert await zookeeper.children(f"{path}/a") == ["b"]


async def test_an_ephemeral_node_goes_with_its_session(server: PrivateServer, zookeeper: ZooKeeper, path: str) -> None:
    async with ZooKeeper(server.address) as other:
        await other.create(path, ephemeral=True)
        assert (await zookeeper.get(path)).owner_session == other.session_id
    assert await zookeeper.find(path) is None


async def test_a_watch_delivers_absence_creation_changes_and_deletion(zookeeper: ZooKeeper, path: str) -> None:
    seen = Seen()
    watch = await zookeeper.watch_data(path, seen)
    assert seen.values == [None]
    await zookeeper.create(path, b"a")
    await seen.latest_is(b"a", within_s=5.0)
    await zookeeper.set(path, b"b", version=-1)
    await seen.latest_is(b"b", within_s=5.0)
    await zookeeper.delete(path)
    await seen.latest_is(None, within_s=5.0)
    await zookeeper.create(path, b"c")
    await seen.latest_is(b"c", within_s=5.0)
    assert seen.threads == {threading.get_ident()}
    await watch.close()
    count = len(seen.values)
    await zookeeper.set(path, b"after", version=-1)
    second = Seen()
    await zookeeper.watch_data(path, second)
    await second.latest_is(b"after", within_s=5.0)
    assert len(seen.values) == count


async def test_a_thousand_quick_writes_end_in_the_last_one(zookeeper: ZooKeeper, path: str) -> None:
    await zookeeper.create(path, b"start")
    seen = Seen()
    await zookeeper.watch_data(path, seen)
    await asyncio.gather(*(zookeeper.set(path, b"%d" % number, version=-1, timeout_s=10) for number in range(999)))
    await zookeeper.set(path, b"last", version=-1)
    await seen.latest_is(b"last", within_s=5.0)


async def test_reading_again_and_again_leaves_one_watcher(
    zookeeper: ZooKeeper, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshkit.zk._WATCH_REREAD_S", 0.001)
    reads = 0
    read = zookeeper.read_watched

    async def counted(path: str, on_event: Callable[[object], None]) -> Node | None:
        nonlocal reads
        reads += 1
        return await read(path, on_event)

    monkeypatch.setattr(zookeeper, "read_watched", counted)
    await zookeeper.create(path, b"same")
    seen = Seen()
    await zookeeper.watch_data(path, seen)

    async def read_often() -> bool:
        return reads > 20

    await until(read_often)
    assert len(zookeeper._client._data_watchers[path]) == 1
    assert seen.values == [b"same"]


async def test_a_callback_that_fails_ends_no_watch(
    zookeeper: ZooKeeper, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def fragile(node: Node | None) -> None:
        if node is not None and node.data == b"bad":
            raise ValueError("not JSON")
        seen(node)

    await zookeeper.watch_data(path, fragile)
    await zookeeper.create(path, b"bad")

    async def logged() -> bool:
        return any(record.message == "zookeeper_watch_callback_failed" for record in caplog.records)

    await until(logged)
    await zookeeper.set(path, b"good", version=-1)
    await seen.latest_is(b"good", within_s=5.0)


async def test_a_killed_and_restarted_server_is_used_again_and_its_watches_deliver(
    server: PrivateServer, zookeeper: ZooKeeper, path: str
) -> None:
    states: list[ZooKeeperState] = []
    zookeeper.on_state(states.append)
    await zookeeper.create(path, b"before")
    seen = Seen()
    await zookeeper.watch_data(path, seen)
    server.kill()
    begun = time.monotonic()
    with pytest.raises(ZooKeeperUnavailable):
        await zookeeper.get(path, timeout_s=0.3)
    assert time.monotonic() - begun < 0.3 + 2.0
    assert ZooKeeperState.SUSPENDED in states
    await asyncio.to_thread(server.start)
    assert await zookeeper.wait_connected(10.0)
    # Written by someone else, so that this client learns of it by its watch only.
    async with ZooKeeper(server.address) as other:
        await other.set(path, b"after", version=-1)
    await seen.latest_is(b"after", within_s=5.0)
    assert states[-1] is ZooKeeperState.CONNECTED


async def test_a_change_made_while_a_watcher_was_cut_off_is_delivered_when_it_is_back(
    server: PrivateServer, path: str, zookeeper: ZooKeeper
) -> None:
    await zookeeper.create(path, b"before")
    async with relay(server.port) as link, ZooKeeper(f"127.0.0.1:{link.port}", session_timeout_s=20.0) as cut_off:
        seen = Seen()
        await cut_off.watch_data(path, seen)
        await link.cut()
        await zookeeper.set(path, b"meanwhile", version=-1)
        with pytest.raises(ZooKeeperUnavailable):
            await cut_off.get(path, timeout_s=0.2)
        await link.join()
        assert await cut_off.wait_connected(5.0)
        await seen.latest_is(b"meanwhile", within_s=5.0)


async def test_an_expired_session_loses_its_ephemeral_nodes_and_the_client_goes_on(
    server: PrivateServer, zookeeper: ZooKeeper, path: str
) -> None:
    await zookeeper.create(f"{path}-watched", b"before")
    async with relay(server.port) as link, ZooKeeper(f"127.0.0.1:{link.port}", session_timeout_s=1.0) as cut_off:
        states: list[ZooKeeperState] = []
        cut_off.on_state(states.append)
        seen = Seen()
        await cut_off.watch_data(f"{path}-watched", seen)
        await cut_off.create(path, ephemeral=True)
        session = cut_off.session_id
        await link.cut()

        async def expired() -> bool:
            return await zookeeper.find(path) is None

        await until(expired)
        await zookeeper.set(f"{path}-watched", b"after", version=-1)
        await link.join()
        await seen.latest_is(b"after", within_s=5.0)
        assert ZooKeeperState.LOST in states
        assert cut_off.session_id != session


async def test_a_frozen_server_costs_an_operation_its_timeout_only(
    server: PrivateServer, zookeeper: ZooKeeper, path: str
) -> None:
    with server.frozen():
        begun = time.monotonic()
        with pytest.raises(ZooKeeperUnavailable):
            await zookeeper.create(path, timeout_s=0.3)
        assert time.monotonic() - begun < 0.3 + 2.0
    assert await zookeeper.wait_connected(10.0)


async def test_a_write_given_up_while_disconnected_is_not_sent_later(
    server: PrivateServer, zookeeper: ZooKeeper, path: str
) -> None:
    await zookeeper.create(path, b"before")
    server.kill()

    async def noticed() -> bool:
        return zookeeper.state is not ZooKeeperState.CONNECTED

    await until(noticed)
    with pytest.raises(ZooKeeperUnavailable):
        await zookeeper.set(path, b"given up", version=-1, timeout_s=0.2)
    await asyncio.to_thread(server.start)
    assert await zookeeper.wait_connected(10.0)
    assert (await zookeeper.get(path)).data == b"before"


async def test_starting_without_a_server_fails_clearly_in_time_and_leaves_no_thread() -> None:
    threads = set(threading.enumerate())
    address = f"127.0.0.1:{free_port()}"
    client = ZooKeeper(address)
    begun = time.monotonic()
    with pytest.raises(ZooKeeperUnavailable, match=address):
        await client.start(timeout_s=0.5)
    assert time.monotonic() - begun < 0.5 + 2.0
    await until(lambda: no_more_than(threads))


async def test_a_stopped_client_leaves_no_thread_and_refuses_at_once(server: PrivateServer) -> None:
    threads = set(threading.enumerate())
    client = ZooKeeper(server.address)
    await client.start()
    seen = Seen()
    await client.watch_data("/tests", seen)
    await client.stop()
    await client.stop()
    await until(lambda: no_more_than(threads))
    begun = time.monotonic()
    with pytest.raises(ZooKeeperUnavailable):
        await client.get("/tests")
    assert time.monotonic() - begun < 2.0


async def no_more_than(threads: set[threading.Thread]) -> bool:
    """Whether no thread runs beside those, the pool of to_thread apart."""
    return not [thread for thread in set(threading.enumerate()) - threads if not thread.name.startswith("asyncio_")]


class relay:  # noqa: N801 - used as a function
    """A loopback port in front of another, which can be cut and joined again."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "relay":
        await self.join()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def join(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, behind_writer))
                group.create_task(self._copy(behind_reader, writer))
        except asyncio.CancelledError:
            # cut() ends the connection this way, and waits for it.
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, behind_writer):
                each.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()
