import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from couponmesh.coupon.v1 import cashier_service_pb2_grpc
from couponmesh.coupon.v1.cashier_service_pb2 import ConsumeRequest, ConsumeResponse
from meshkit.server import Endpoints, ServiceBinding, StartRefusedError
from tests.integration.served import (
    CASHIER,
    TILL,
    answers,
    cashier,
    eventually,
    order,
    refused,
    served,
    till,
)
from tests.integration.service_process import NOT_SERVING, SERVING, ServiceProcess, health_of, service_process


async def test_health_is_told_overall_and_per_service_to_anyone() -> None:
    async with served(cashier()) as endpoints:
        assert await health_of(endpoints.port, "") == SERVING
        assert await health_of(endpoints.port, CASHIER) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await health_of(endpoints.port, "no.such.Service")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_service_without_rpcs_of_its_own_is_healthy() -> None:
    async with served() as endpoints:
        assert await health_of(endpoints.port, "") == SERVING


async def test_reflection_lists_the_services() -> None:
    async with (
        served(cashier()) as endpoints,
        grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel,
    ):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        names = [service.name async for reply in replies for service in reply.list_services_response.service]
    assert set(names) == {CASHIER, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def start(*bindings: ServiceBinding, **fields: Any) -> None:
    async with served(*bindings, **fields):
        raise AssertionError("the server started")


async def test_a_service_whose_rpcs_state_no_access_does_not_start() -> None:
    # A real service of another project: none of its RPCs has our access option.
    foreign = ServiceBinding(
        "grpc.health.v1.Health", health_pb2_grpc.add_HealthServicer_to_server, health_pb2_grpc.HealthServicer()
    )
    with pytest.raises(StartRefusedError, match=r"/grpc\.health\.v1\.Health/\w+ states no access option"):
        await start(foreign)


async def test_a_service_with_an_rpc_that_nobody_wrote_does_not_start() -> None:
    unwritten = ServiceBinding(
        CASHIER,
        cashier_service_pb2_grpc.add_CashierServiceServicer_to_server,
        cashier_service_pb2_grpc.CashierServiceServicer(),  # type: ignore[abstract]  # What the test is about.
    )
    with pytest.raises(StartRefusedError, match=r"CashierService/Consume is not implemented"):
        await start(unwritten)


async def test_a_second_server_on_a_port_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    async with served(cashier()) as first:
        with pytest.raises(StartRefusedError, match=f"cannot listen on 127.0.0.1:{first.port}"):
            await start(cashier(), listen=f"127.0.0.1:{first.port}")
        async with till(first) as client:
            assert await client.Consume(order(), metadata=TILL) == await answers(order())
    capfd.readouterr()  # gRPC's core says it on stderr, too.


async def test_deliberate_workers_may_share_a_port() -> None:
    async with (
        served(cashier(), so_reuseport=True) as first,
        served(cashier(), so_reuseport=True, listen=f"127.0.0.1:{first.port}") as second,
    ):
        assert second.port == first.port


async def test_a_metrics_port_that_is_taken_stops_the_start() -> None:
    async with served() as first:
        with pytest.raises(StartRefusedError, match="for metrics"):
            await start(metrics_listen=f"127.0.0.1:{first.metrics_port}")


async def test_a_drain_says_not_serving_while_calls_still_run_and_lets_them_finish() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def consume(request: ConsumeRequest) -> ConsumeResponse:
        if request.order_id == "running":
            entered.set()
            await go_on.wait()
        return ConsumeResponse(transaction_id=request.order_id)

    serving = served(cashier(consume), drain_s=0.5, grace_s=5.0)
    endpoints: Endpoints = await serving.__aenter__()
    async with till(endpoints) as client:
        running = client.Consume(order(order_id="running"), metadata=TILL)
        async with asyncio.timeout(5):
            await entered.wait()
        drain = asyncio.create_task(serving.__aexit__(None, None, None))

        async def turned_away() -> bool:
            return {await health_of(endpoints.port, each) for each in ("", CASHIER)} == {NOT_SERVING}

        await eventually(turned_away)
        # Balancers need a moment to notice, in which late calls are still answered.
        late = await client.Consume(order(order_id="late"), metadata=TILL)
        assert late.transaction_id == "late"

        async def closed_to_new_calls() -> bool:
            try:
                await client.Consume(order(order_id="too late"), metadata=TILL, timeout=1)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAVAILABLE
            return False

        await eventually(closed_to_new_calls)
        assert not drain.done()
        go_on.set()
        assert (await running).transaction_id == "running"
        await drain


async def test_a_call_that_outlives_the_grace_period_is_cancelled() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    serving = served(cashier(consume), grace_s=0.2)
    endpoints = await serving.__aenter__()
    async with till(endpoints) as client:
        call = asyncio.create_task(refused(client.Consume(order(), metadata=TILL)))
        async with asyncio.timeout(5):
            await entered.wait()
            await serving.__aexit__(None, None, None)
            await cancelled.wait()
        assert (await call).code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def process(**variables: str) -> AbstractAsyncContextManager[ServiceProcess]:
    settings = {
        "SERVED_LISTEN": "127.0.0.1:0",
        "SERVED_METRICS_LISTEN": "127.0.0.1:0",
        "SERVED_DRAIN_S": "0.2",
        "SERVED_GRACE_S": "10",
    }
    return service_process("tests.integration.served_process", **(settings | variables))


async def test_sigterm_finishes_the_running_call_then_closes_and_a_second_one_changes_nothing() -> None:
    async with process() as service:
        port = (await service.until("service_serving"))["port"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client: Any = cashier_service_pb2_grpc.CashierServiceStub(channel)
            running = asyncio.ensure_future(client.Consume(order(order_id="o-1"), metadata=TILL))
            await service.until("use_case_entered")
            service.process.send_signal(signal.SIGTERM)
            await service.until("service_draining")
            service.process.send_signal(signal.SIGTERM)
            service.process.send_signal(signal.SIGINT)
            assert (await service.until("stop_requested"))["again"] is True
            service.process.send_signal(signal.SIGUSR1)
            assert (await running).transaction_id == "o-1"
        await service.until("service_stopped")
        assert await service.exit_status() == 0
    assert service.names.index("service_draining") < service.names.index("resources_closed")


async def test_a_signal_during_the_start_ends_it_and_closes_what_was_opened() -> None:
    async with process(SERVED_SLOW_START="true") as service:
        await service.until("building")
        service.process.send_signal(signal.SIGTERM)
        await service.until("resources_closed")
        assert await service.exit_status() == 0
    assert "service_serving" not in service.names


async def test_a_start_that_is_refused_says_why_and_ends_with_status_1() -> None:
    async with served() as other, process(SERVED_METRICS_LISTEN=f"127.0.0.1:{other.metrics_port}") as service:
        event = await service.until("service_failed")
        assert "for metrics" in event["problem"]
        assert event["error"] == "meshkit.server.StartRefusedError"
        assert await service.exit_status() == 1


async def test_a_bad_configuration_ends_the_process_with_status_2_and_names_every_fault() -> None:
    async with process(SERVED_DRAIN_S="soon", SERVED_LISTEN="nowhere") as service:
        assert service.process.stderr is not None
        text = (await service.process.stderr.read()).decode()
        assert await service.exit_status() == 2
    assert "SERVED_DRAIN_S" in text
    assert "SERVED_LISTEN" in text


async def test_misspelt_variables_are_named_and_do_not_stop_the_start() -> None:
    async with process(SERVED_GRACE_SECONDS="hunter2") as service:
        event = await service.until("variables_unknown")
        assert event["variables"] == ["SERVED_GRACE_SECONDS"]
        await service.until("service_serving")
    assert "hunter2" not in str(service.events)


@pytest.mark.parametrize("package", ["settle_svc", "campaign_svc"])
async def test_a_service_that_owns_a_schema_does_not_start_without_knowing_where(package: str) -> None:
    prefix = package.removesuffix("_svc").upper()
    nobody = "127.0.0.1:1"
    async with service_process(package, **{f"{prefix}_SHARD_MAP_FILE": "", f"{prefix}_ZOOKEEPER": nobody}) as service:
        event = await service.until("service_failed")
        assert await service.exit_status() == 1
    assert event["problem"].startswith("no shard map")
    assert f"/shardmap/{package.removesuffix('_svc')}" in event["problem"]
    assert "SHARD_MAP_FILE" in event["problem"]
