"""The stack that other tests build on: what its handles do to real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import grpc
import pymysql
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from couponmesh.coupon.v1 import batch_service_pb2, batch_service_pb2_grpc
from meshctl.stack.process import identify, wait_gone
from meshkit.shard_map import Dsn
from tests.harness.stack import Handle, PrivateStack


@pytest.fixture(params=["mariadb", "redis", "zookeeper", "coupon"])
def handle(stack: PrivateStack, request: pytest.FixtureRequest) -> Handle:
    return stack.coupon(2) if request.param == "coupon" else getattr(stack, request.param)


async def test_a_killed_component_comes_back_on_its_port_with_another_process(
    stack: PrivateStack, handle: Handle
) -> None:
    pid, endpoint = handle.pid, handle.endpoint
    handle.kill()
    assert not handle.is_running
    assert not handle.is_up()

    await handle.start()

    assert handle.is_up()
    assert handle.pid != pid
    assert handle.endpoint == endpoint
    await stack.wait_until_serving()


async def test_a_frozen_component_runs_and_does_not_serve_until_it_is_thawed(
    stack: PrivateStack, handle: Handle
) -> None:
    with handle.frozen():
        assert handle.is_running
        assert not handle.is_up()
    await handle.wait_ready()
    await stack.wait_until_serving()


async def test_committed_rows_survive_the_kill_of_mariadb(stack: PrivateStack) -> None:
    with stack.mariadb.scratch_database() as dsn:
        address = Dsn.parse(dsn)
        stack.mariadb.administer(
            f"CREATE TABLE `{address.database}`.kept (n INT PRIMARY KEY)",
            f"INSERT INTO `{address.database}`.kept VALUES (7)",
        )
        stack.mariadb.kill()
        await stack.mariadb.start()
        assert stack.mariadb.administer(f"SELECT n FROM `{address.database}`.kept") == [(7,)]
    await stack.wait_until_serving()


KILLED_TESTS = """
import time
from tests.harness.stack import PrivateStack
stack = PrivateStack()
stack.local.start_together([stack.local.redis])
print(stack.redis.pid, stack.mesh, flush=True)
time.sleep(60)
"""


def test_a_stack_goes_with_the_tests_that_were_killed() -> None:
    tests = subprocess.Popen([sys.executable, "-c", KILLED_TESTS], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    pid, folder = tests.stdout.readline().split()
    redis = identify(int(pid))
    assert redis is not None

    tests.kill()
    tests.wait()
    tests.stdout.close()

    assert wait_gone(redis, 30)
    deadline = time.monotonic() + 30
    while Path(folder).exists():
        assert time.monotonic() < deadline, "the stack's folder is still there"
        time.sleep(0.05)


def test_the_application_account_reaches_no_database_but_its_own(stack: PrivateStack) -> None:
    address = Dsn.parse(stack.dsn("coupon", 0))
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        pymysql.connect(
            host=address.host, port=address.port, user=address.user, password=address.password, database="mysql"
        )


def test_root_cannot_log_in_over_tcp(stack: PrivateStack) -> None:
    address = Dsn.parse(stack.dsn("coupon", 0))
    password = (stack.mesh / "secrets" / "database_root_password").read_text()
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        pymysql.connect(host=address.host, port=address.port, user="root", password=password)


async def test_every_shard_of_both_coupon_databases_has_its_owner_row(stack: PrivateStack) -> None:
    assert len({entry.dsn for entry in stack.shard_map("coupon").ranges}) == 2
    rows = await stack.fetch_all("coupon", "SELECT shard, epoch FROM shard_owner ORDER BY shard")
    assert rows == [(shard, 1) for shard in range(128)]
    upper = await stack.fetch_all("coupon", "SELECT MIN(shard) FROM shard_owner", shard=100)
    assert upper == [(64,)]


async def test_mariadb_runs_with_the_durability_and_the_bounds_of_production(stack: PrivateStack) -> None:
    names = (
        "innodb_flush_log_at_trx_commit", "sync_binlog", "binlog_format", "log_bin", "time_zone", "skip_name_resolve",
        "innodb_buffer_pool_size", "max_connections",
    )  # fmt: skip
    (row,) = stack.mariadb.administer("SELECT " + ", ".join(f"@@GLOBAL.{name}" for name in names))
    assert dict(zip(names, row, strict=True)) == {
        "innodb_flush_log_at_trx_commit": 1,
        "sync_binlog": 1,
        "binlog_format": "ROW",
        "log_bin": 1,
        "time_zone": "+00:00",
        "skip_name_resolve": 1,
        "innodb_buffer_pool_size": 64 * 1024 * 1024,
        "max_connections": 200,
    }
    ((modes,),) = stack.mariadb.administer("SELECT @@GLOBAL.sql_mode")
    assert "STRICT_ALL_TABLES" in modes


async def test_rest_and_grpc_reach_the_services_through_envoy(stack: PrivateStack) -> None:
    async with stack.rest(stack.token("cashier", merchant="10086")) as client:
        reply = await client.post("/api/v1/coupon/consume", json={"coupon_code": "nonsense", "merchant_id": "10086"})
    assert reply.status_code == 400
    async with stack.coupon_channel(2) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_metric_is_summed_over_the_replicas_and_the_labels_that_are_not_named(stack: PrivateStack) -> None:
    async def answered(**labels: str) -> float:
        return await stack.metric("mesh_rpc_requests_total", **labels)

    before = await answered(), await answered(code="UNAUTHENTICATED")
    for number in (1, 2):
        async with stack.coupon_channel(number) as channel:
            batches = batch_service_pb2_grpc.BatchServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await batches.GetBatch(batch_service_pb2.GetBatchRequest(batch_id="1"), timeout=5)

    assert await answered() - before[0] == 2
    assert await answered(code="UNAUTHENTICATED") - before[1] == 2
