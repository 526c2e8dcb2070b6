"""The Redis client and scripts against a real Redis: nothing runs twice, nothing waits for ever."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from meshkit.lua import Script
from meshkit.redis_client import open_redis
from tests.integration.private_redis_zookeeper import PrivateServer, free_port, private_redis, until

ADD = Script(
    "add-1.lua",
    """-- Adds to a counter.
-- KEYS[1] the counter
-- ARGV[1] how much
-- Output: the sum
return redis.call('INCRBY', KEYS[1], ARGV[1])
""",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    server = private_redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis(server: PrivateServer) -> AsyncIterator[Redis]:
    client = open_redis(f"redis://{server.address}/0", timeout_s=1.0)
    await client.flushall()
    await client.script_flush()
    yield client
    await client.aclose()


@asynccontextmanager
async def losing_replies(server: PrivateServer, marker: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that passes everything on, but hangs up as soon as Redis replied to what holds the marker.

    Gives its port and the marked requests that reached Redis.
    """
    marked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while request := await reader.read(65536):
                behind_writer.write(request)
                reply = await behind_reader.read(65536)
                if marker in request:
                    marked.append(request)
                    break
                writer.write(reply)
        finally:
            for each in (writer, behind_writer):
                each.close()
                await each.wait_closed()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        yield proxy.sockets[0].getsockname()[1], marked


async def test_a_command_whose_reply_is_lost_ran_exactly_once(server: PrivateServer, redis: Redis) -> None:
    await redis.set("stock", 10)
    async with losing_replies(server, b"DECR") as (port, marked):
        client = open_redis(f"redis://127.0.0.1:{port}/0")
        with pytest.raises(RedisConnectionError):
            await client.decr("stock")
        await client.aclose()
    assert len(marked) == 1
    assert await redis.get("stock") == b"9"


async def test_a_pipeline_whose_reply_is_lost_ran_exactly_once(server: PrivateServer, redis: Redis) -> None:
    async with losing_replies(server, b"INCR") as (port, marked):
        client = open_redis(f"redis://127.0.0.1:{port}/0")
        pipeline = client.pipeline(transaction=False)
        pipeline.incr("a")
        pipeline.incr("b")
        with pytest.raises(RedisConnectionError):
            await pipeline.execute()
        await client.aclose()
    assert len(marked) == 1
    assert await redis.mget("a", "b") == [b"1", b"1"]


async def test_a_script_whose_reply_is_lost_ran_exactly_once(server: PrivateServer, redis: Redis) -> None:
    await ADD(redis, ["warm"], [1])
    async with losing_replies(server, b"EVAL") as (port, marked):
        client = open_redis(f"redis://127.0.0.1:{port}/0")
        with pytest.raises(RedisConnectionError):
            await ADD(client, ["sum"], [5])
        await client.aclose()
    assert len(marked) == 1
    assert await redis.get("sum") == b"5"


async def test_redis_pys_own_default_would_have_run_the_command_several_times(
    server: PrivateServer, redis: Redis
) -> None:
    # The trap that open_redis() closes; when this fails, redis-py has changed its default.
    await redis.set("stock", 10)
    async with losing_replies(server, b"DECR") as (port, marked):
        client = Redis(host="127.0.0.1", port=port)
        with pytest.raises(RedisConnectionError):
            await client.decr("stock")
        await client.aclose()
    assert len(marked) > 1


async def test_a_frozen_redis_costs_no_more_than_the_timeout(server: PrivateServer, redis: Redis) -> None:
    client = open_redis(f"redis://{server.address}/0", timeout_s=0.2)
    await client.ping()
    with server.frozen():
        took_s = []
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await client.ping()
            took_s.append(time.monotonic() - begun)
        # One try without a retry; a busy machine does not delay all three.
        assert min(took_s) < 1.0
    assert await redis.ping()
    await client.aclose()


async def test_nobody_listening_is_an_error_at_once() -> None:
    client = open_redis(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.2)
    with pytest.raises(RedisConnectionError):
        await client.ping()
    await client.aclose()


async def test_the_pool_is_bounded_and_waiting_for_it_too(server: PrivateServer, redis: Redis) -> None:
    client = open_redis(f"redis://{server.address}/0", timeout_s=0.3, max_connections=2)
    await asyncio.gather(*(client.ping() for _ in range(50)))
    assert int((await redis.info("clients"))["connected_clients"]) <= 2 + 1
    with server.frozen():
        begun = time.monotonic()
        results = await asyncio.gather(*(client.ping() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, RedisError) for result in results)
        assert time.monotonic() - begun < 5.0
    await client.aclose()


async def test_a_cancelled_command_does_not_leave_its_reply_to_the_next(server: PrivateServer, redis: Redis) -> None:
    client = open_redis(f"redis://{server.address}/0", timeout_s=5.0, max_connections=1)
    await client.set("other", "other's")
    blocked = asyncio.ensure_future(client.blpop(["list"], timeout=3))

    async def waits() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) == 1

    await until(waits)
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    await redis.rpush("list", "late")
    assert await client.get("other") == b"other's"
    await client.aclose()


async def test_a_restarted_redis_that_knows_no_script_runs_it_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = private_redis(tmp_path_factory.mktemp("restarted"))
    server.start()
    client = open_redis(f"redis://{server.address}/0", timeout_s=1.0)
    try:
        assert await ADD(client, ["sum"], [5]) == 5
        await server.restart()
        assert await ADD(client, ["sum"], [7]) == 7
        assert await ADD(client, ["sum"], [1]) == 8
    finally:
        await client.aclose()
        server.kill()


async def test_a_pipeline_on_a_redis_that_knows_no_script_runs_each_call_once(redis: Redis) -> None:
    for expected in ([1, 3, 6], [7, 9, 12]):
        pipeline = redis.pipeline(transaction=False)
        for amount in (1, 2, 3):
            await ADD(pipeline, ["sum"], [amount])
        assert await pipeline.execute() == expected
        await redis.script_flush()
    with pytest.raises(NoScriptError):
        await redis.evalsha(ADD._sha, 1, "sum", "1")
