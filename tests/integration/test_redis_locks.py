"""Locks in a real Redis: whose they are, what an outage costs, and that nothing stays locked by accident."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from meshkit.locks import LockEvent, LocksUnavailable, RedisLocks, Token
from meshkit.redis_client import open_redis
from tests.integration.private_redis_zookeeper import PrivateServer, free_port, private_redis, until

KEY = "LOCK_COUPON:{0000000000000000001}"
OTHER = "LOCK_COUPON:{0000000000000000002}"

HOLDER = """
import asyncio, sys
from meshkit.locks import RedisLocks
from meshkit.redis_client import open_redis

async def main(url, key):
    redis = open_redis(url)
    async with RedisLocks(redis, lease_ms=400) as locks:
        held = await locks.acquire([key])
        print("held", flush=True)
        sys.stdin.readline()
        await locks.release(held)
        print("released", flush=True)
    await redis.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    server = private_redis(tmp_path_factory.mktemp("locks"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis(server: PrivateServer) -> AsyncIterator[Redis]:
    client = open_redis(f"redis://{server.address}/0")
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def events() -> Counter[LockEvent]:
    return Counter()


@pytest.fixture
async def locks(redis: Redis, events: Counter[LockEvent]) -> AsyncIterator[RedisLocks]:
    def count(event: LockEvent, keys: int) -> None:
        events[event] += keys

    async with RedisLocks(redis, on_event=count) as locks:
        yield locks


def held(tokens: dict[str, Token | None]) -> dict[str, Token]:
    """What was acquired."""
    return {key: token for key, token in tokens.items() if token is not None}


async def test_a_key_is_held_once_until_it_is_released(locks: RedisLocks, events: Counter[LockEvent]) -> None:
    first = await locks.acquire([KEY, OTHER])
    assert set(held(first)) == {KEY, OTHER}
    assert await locks.acquire([KEY]) == {KEY: None}
    await locks.release(held(first))
    assert set(held(await locks.acquire([KEY, OTHER]))) == {KEY, OTHER}
    assert events == {LockEvent.ACQUIRED: 4, LockEvent.CONTENDED: 1}


async def test_each_acquisition_has_a_token_of_its_own_and_fences_rise(locks: RedisLocks) -> None:
    tokens: list[Token] = []
    for _ in range(5):
        acquired = held(await locks.acquire([KEY, OTHER]))
        tokens.extend(acquired.values())
        await locks.release(acquired)
    assert len({token.value for token in tokens}) == 10
    fences = [token.fence for token in tokens[::2]]
    assert fences == sorted(set(fences))


async def test_of_many_tasks_at_once_exactly_one_holds_a_key(locks: RedisLocks, events: Counter[LockEvent]) -> None:
    # 16 connections serve them; the bound of acquire() covers the wait for one.
    results = await asyncio.gather(*(locks.acquire([KEY]) for _ in range(16)))
    assert sum(len(held(result)) for result in results) == 1
    assert events[LockEvent.CONTENDED] == 15


async def test_a_token_does_not_show_in_a_repr(locks: RedisLocks) -> None:
    (token,) = held(await locks.acquire([KEY])).values()
    assert token.value not in repr(token)


async def test_a_lease_that_ran_out_does_not_release_the_next_holders_lock(redis: Redis) -> None:
    async with RedisLocks(redis, lease_ms=60) as first, RedisLocks(redis) as second:
        late = held(await first.acquire([KEY]))
        taken: dict[str, Token] = {}

        async def taken_over() -> bool:
            taken.update(held(await second.acquire([KEY])))
            return KEY in taken

        await until(taken_over)
        await first.release(late)
        assert await redis.get(KEY) == taken[KEY].value.encode()
        assert taken[KEY].fence > late[KEY].fence
        await second.release(taken)
        assert await redis.get(KEY) is None


async def test_a_paused_process_does_not_release_the_lock_that_another_took_meanwhile(
    server: PrivateServer, redis: Redis, locks: RedisLocks
) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLDER,
        f"redis://{server.address}/0",
        KEY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert await asyncio.wait_for(holder.stdout.readline(), 20) == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        taken: dict[str, Token] = {}

        async def taken_over() -> bool:
            taken.update(held(await locks.acquire([KEY])))
            return KEY in taken

        await until(taken_over)
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write(b"go on\n")
        assert await asyncio.wait_for(holder.stdout.readline(), 20) == b"released\n"
        assert await redis.get(KEY) == taken[KEY].value.encode()
        assert await asyncio.wait_for(holder.wait(), 20) == 0
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()


async def test_a_flushed_redis_just_means_free_locks(redis: Redis, locks: RedisLocks) -> None:
    before = held(await locks.acquire([KEY]))
    await redis.flushall()
    after = held(await locks.acquire([KEY]))
    await locks.release(before)
    assert await redis.get(KEY) == after[KEY].value.encode()


async def test_releasing_or_acquiring_nothing_asks_redis_nothing(locks: RedisLocks, server: PrivateServer) -> None:
    with server.frozen():
        assert await locks.acquire([]) == {}
        await locks.release({})
    assert locks.available


async def test_a_frozen_redis_costs_one_timeout_and_then_nothing(
    server: PrivateServer, redis: Redis, locks: RedisLocks, events: Counter[LockEvent]
) -> None:
    await locks.acquire([OTHER])
    with server.frozen():
        begun = time.monotonic()
        with pytest.raises(LocksUnavailable):
            await locks.acquire([KEY])
        first_s = time.monotonic() - begun
        begun = time.monotonic()
        for _ in range(500):
            with pytest.raises(LocksUnavailable):
                await locks.acquire([KEY])
        per_call_s = (time.monotonic() - begun) / 500
    assert first_s < 0.1 + 2.0
    # A quarter of the timeout that asking Redis would cost each of them.
    assert per_call_s < 0.1 / 4
    assert events[LockEvent.UNAVAILABLE] == 501
    await until(lambda: is_available(locks))
    # The command of the acquisition that failed ran when Redis went on; its lock is gone again.
    assert set(held(await locks.acquire([KEY]))) == {KEY}


async def is_available(locks: RedisLocks) -> bool:
    return locks.available


async def test_a_killed_redis_is_noticed_at_once_and_used_again_when_it_is_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = private_redis(tmp_path_factory.mktemp("killed"))
    server.start()
    redis = open_redis(f"redis://{server.address}/0")
    try:
        async with RedisLocks(redis) as locks:
            lost = held(await locks.acquire([KEY]))
            server.kill()
            begun = time.monotonic()
            with pytest.raises(LocksUnavailable):
                await locks.acquire([OTHER])
            await locks.release(lost)
            assert time.monotonic() - begun < 0.1 + 2.0
            await asyncio.to_thread(server.start)
            await until(lambda: is_available(locks))
            assert set(held(await locks.acquire([KEY, OTHER]))) == {KEY, OTHER}
    finally:
        await redis.aclose()
        server.kill()


async def test_a_lock_that_could_not_be_released_is_released_when_redis_is_back(
    server: PrivateServer, redis: Redis, locks: RedisLocks
) -> None:
    acquired = held(await locks.acquire([KEY]))
    with server.frozen():
        with pytest.raises(LocksUnavailable):
            await locks.acquire([OTHER])
        # It is known that Redis is away, so nothing is sent now.
        took_s = []
        for _ in range(5):
            begun = time.monotonic()
            await locks.release(acquired)
            took_s.append(time.monotonic() - begun)
        # Each time that Redis was asked would cost its timeout, 0.1 s; a busy machine does not delay all five.
        assert min(took_s) < 0.05
    await until(lambda: is_available(locks))
    # Far less than the lease of three seconds has gone by.
    assert await redis.get(KEY) is None


async def test_a_cancelled_acquisition_leaves_nothing_locked(
    server: PrivateServer, redis: Redis, events: Counter[LockEvent]
) -> None:
    async with RedisLocks(redis, lease_ms=60_000, timeout_s=5) as locks:
        await locks.acquire([OTHER])
        with server.frozen():
            waiting = asyncio.ensure_future(locks.acquire([KEY]))
            # One turn of the loop each for the pool, the write and the read.
            await until(lambda: is_sent(server))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert locks.available

        async def swept() -> bool:
            return not locks._doubtful

        await until(swept)
        assert await redis.get(KEY) is None
        # Proof that the command had reached Redis: the fence behind it counted.
        assert await redis.get("LOCK_FENCE") == b"2"


async def is_sent(server: PrivateServer) -> bool:
    """Whether bytes that the server did not read lie in one of its sockets."""
    port = f":{server.port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: ASYNC230, PTH123 - the kernel answers at once
        rows = [line.split() for line in table.readlines()[1:]]
    return any(row[1].endswith(port) and int(row[4].split(":")[1], 16) > 0 for row in rows if row[3] == "01")


async def test_a_redis_that_refuses_writes_is_unavailable_and_nothing_stays_locked(
    redis: Redis, locks: RedisLocks
) -> None:
    await redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(LocksUnavailable):
            await locks.acquire([KEY])
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    await until(lambda: is_available(locks))
    assert set(held(await locks.acquire([KEY]))) == {KEY}


async def test_every_command_names_one_key_so_that_a_cluster_takes_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    # One node that owns all slots refuses commands over several of them just as a larger cluster does.
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    server = private_redis(tmp_path_factory.mktemp("cluster"), *options)
    server.start()
    redis = open_redis(f"redis://{server.address}/0")
    try:
        await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]  # redis-py

        async def is_ok() -> bool:
            info: dict[str, str] = await redis.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]  # redis-py
            return info["cluster_state"] == "ok"

        await until(is_ok)
        async with RedisLocks(redis) as locks:
            keys = [f"LOCK_COUPON:{{{number:019d}}}" for number in range(100)]
            acquired = held(await locks.acquire(keys))
            assert len(acquired) == 100
            await locks.release(acquired)
            assert await redis.dbsize() == 1
    finally:
        await redis.aclose()
        server.kill()
