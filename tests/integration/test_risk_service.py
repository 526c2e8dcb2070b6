"""risk_svc as its callers see it: over gRPC, with a real Redis behind it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from pydantic import SecretStr

from couponmesh.risk.v1 import error_reason_pb2 as risk_errors
from couponmesh.risk.v1 import risk_service_pb2 as pb
from couponmesh.risk.v1.risk_service_pb2_grpc import RiskServiceStub
from couponmesh.type.v1 import client_context_pb2
from couponmesh.type.v1 import error_reason_pb2 as type_errors
from meshkit import server
from meshkit.channel import open_channel
from meshkit.telemetry import Telemetry
from risk_svc import wiring
from risk_svc.config import RiskConfig
from tests.integration.risk_redis import RedisServer

REASONS = [errors.DESCRIPTOR.enum_types_by_name["ErrorReason"] for errors in (type_errors, risk_errors)]
KEYRING = "k1:" + "5a" * 32


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    redis = RedisServer(tmp_path_factory.mktemp("risk-redis"))
    redis.start()
    yield redis
    redis.kill()


@dataclass
class Risk:
    """A risk_svc that serves, and a caller's view of it."""

    stub: RiskServiceStub
    endpoints: server.Endpoints

    async def ask(self, *assessments: pb.Assessment, timeout_s: float = 5.0) -> list[pb.Decision]:
        request = pb.AssessBatchRequest(assessments=assessments)
        return list((await self.stub.AssessBatch(request, timeout=timeout_s)).decisions)

    async def metrics(self) -> dict[str, float]:
        """Every sample's value by its name and labels."""
        text = await asyncio.to_thread(_read, f"http://127.0.0.1:{self.endpoints.metrics_port}/metrics")
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as reply:
        return str(reply.read().decode())


@pytest.fixture(scope="module")
async def serving(redis: RedisServer) -> AsyncIterator[Risk]:
    config = RiskConfig(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        drain_s=0,
        grace_s=1,
        keyring=SecretStr(KEYRING),
        redis_windows_url=SecretStr(redis.url),
        velocity_limit=20,
        guess_limit_without_ip=15,
    )
    telemetry = Telemetry("coupon_svc")
    async with (
        server.serving(config, wiring.build, error_reasons=REASONS) as endpoints,
        open_channel(f"127.0.0.1:{endpoints.port}", "coupon_svc", telemetry) as channel,
    ):
        yield Risk(RiskServiceStub(channel), endpoints)
    telemetry.close()


@pytest.fixture
def risk(serving: Risk, redis: RedisServer) -> Risk:
    """The service, with empty windows."""
    with redis.client() as client:
        client.flushall()
    return serving


def assessment(
    operation: str,
    kind: pb.AssessmentKind.ValueType = pb.ASSESSMENT_KIND_CONSUME,
    *,
    ip: str = "203.0.113.9",
    user_id: int = 42,
    by_code: bool = False,
) -> pb.Assessment:
    return pb.Assessment(
        operation_id=operation,
        kind=kind,
        caller="pos-7",
        client=client_context_pb2.ClientContext(ip=ip),
        user_id=user_id,
        merchant_id="10086",
        by_code=by_code,
    )


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it takes what both kinds of call have
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "couponmesh"
    return info.reason, dict(info.metadata)


async def test_each_operation_gets_its_decision_in_order(risk: Risk) -> None:
    decisions = await risk.ask(*(assessment(f"op-{number}") for number in range(21)), assessment("bob", user_id=43))
    assert [decision.operation_id for decision in decisions] == [*(f"op-{number}" for number in range(21)), "bob"]
    assert [decision.verdict for decision in decisions] == [pb.VERDICT_ALLOW] * 20 + [
        pb.VERDICT_REJECT,
        pb.VERDICT_ALLOW,
    ]
    assert list(decisions[20].rules) == ["user-merchant-velocity"]
    assert not any(decision.rules for decision in decisions[:20])


async def test_a_retry_gets_the_first_decision(risk: Risk) -> None:
    (first,) = await risk.ask(assessment("op"))
    (again,) = await risk.ask(assessment("op"))
    assert (first.replayed, again.replayed) == (False, True)
    assert again.verdict == first.verdict == pb.VERDICT_ALLOW


async def test_bad_codes_shut_out_codes_from_one_address_only(risk: Risk) -> None:
    bad = [assessment(f"bad-{number}", pb.ASSESSMENT_KIND_BAD_CODE) for number in range(11)]
    assert [decision.verdict for decision in await risk.ask(*bad)] == [pb.VERDICT_ALLOW] * 10 + [pb.VERDICT_REJECT]
    decisions = await risk.ask(
        assessment("lookup", pb.ASSESSMENT_KIND_LOOKUP, by_code=True),
        assessment("by-code", by_code=True),
        assessment("by-id"),
        assessment("elsewhere", by_code=True, ip="198.51.100.1"),
        assessment("nowhere", by_code=True, ip=""),
    )
    refused = [decision.operation_id for decision in decisions if list(decision.rules) == ["guessed-codes"]]
    assert refused == ["lookup", "by-code"]
    assert [decision.verdict for decision in decisions[2:]] == [pb.VERDICT_ALLOW] * 3


async def test_the_same_id_twice_in_a_batch_is_invalid(risk: Risk) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await risk.ask(assessment("a"), assessment("twin"), assessment("twin"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == ("OPERATION_DUPLICATED", {"operation_id": "twin"})
    # Nothing was counted for the others either.
    (decision,) = await risk.ask(assessment("a"))
    assert not decision.replayed


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [assessment(f"op-{number}") for number in range(129)],
        [assessment("")],
        [assessment("op", pb.ASSESSMENT_KIND_UNSPECIFIED)],
        [assessment("op", ip="not an address")],
    ],
    ids=["empty", "129", "no id", "no kind", "no address"],
)
async def test_a_request_that_breaks_the_contract_is_invalid(risk: Risk, broken: list[pb.Assessment]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await risk.ask(*broken)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value)[0] == "VALIDATION_FAILED"


async def test_only_services_may_ask(risk: Risk) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{risk.endpoints.port}") as channel:
        request = pb.AssessBatchRequest(assessments=[assessment("op")])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RiskServiceStub(channel).AssessBatch(request, timeout=5.0)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_of_eighty_calls_at_once_exactly_the_limit_is_allowed(risk: Risk) -> None:
    replies = await asyncio.gather(*(risk.ask(assessment(f"op-{number}")) for number in range(80)))
    verdicts = [decision.verdict for (decision,) in replies]
    assert verdicts.count(pb.VERDICT_ALLOW) == 20
    assert verdicts.count(pb.VERDICT_REJECT) == 60


async def test_a_frozen_redis_is_said_to_be_unavailable_before_the_callers_deadline(
    risk: Risk, redis: RedisServer
) -> None:
    await risk.ask(assessment("warm"))
    refusals = []
    with redis.frozen():
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                # Less than the service itself would wait for its windows.
                await risk.ask(assessment("op"), timeout_s=0.15)
            refusals.append(refused.value)
    # Afterwards it would be DEADLINE_EXCEEDED, which is what a busy machine may make of one or another.
    in_time = [refusal for refusal in refusals if refusal.code() is grpc.StatusCode.UNAVAILABLE]
    assert in_time
    assert {reason_of(refusal)[0] for refusal in in_time} == {"WINDOWS_UNAVAILABLE"}


async def test_a_killed_redis_is_unavailable_at_once_and_the_service_goes_on_when_it_is_back(
    risk: Risk, redis: RedisServer
) -> None:
    await risk.ask(assessment("before"))
    redis.kill()
    try:
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await risk.ask(assessment("op"))
        assert time.monotonic() - started < 3
    finally:
        redis.start()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(refused.value)[0] == "WINDOWS_UNAVAILABLE"
    (decision,) = await risk.ask(assessment("before"))
    assert not decision.replayed


async def test_metrics_tell_decisions_by_rule_and_verdict_batch_sizes_and_the_scripts_time(risk: Risk) -> None:
    before = await risk.metrics()
    await risk.ask(*(assessment(f"op-{number}") for number in range(22)))
    await risk.ask(assessment("op-0"))
    after = await risk.metrics()
    for sample, growth in {
        'risk_decisions_total{kind="consume",replayed="false",rule="",verdict="allow"}': 20,
        'risk_decisions_total{kind="consume",replayed="false",rule="user-merchant-velocity",verdict="reject"}': 2,
        'risk_decisions_total{kind="consume",replayed="true",rule="",verdict="allow"}': 1,
        'risk_batch_size_bucket{le="1.0"}': 1,
        'risk_batch_size_bucket{le="32.0"}': 2,
        "risk_script_seconds_count": 2,
    }.items():
        assert after[sample] - before.get(sample, 0) == growth, sample


def test_the_process_starts_without_redis_answers_health_and_stops_on_sigterm() -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RISK_")},
        "RISK_LISTEN": "127.0.0.1:0",
        "RISK_METRICS_LISTEN": "127.0.0.1:0",
        "RISK_KEYRING": KEYRING,
        "RISK_REDIS_WINDOWS_URL": "redis://127.0.0.1:1/0",
        "RISK_DRAIN_S": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "risk_svc"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        port = _port_of(process)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2.HealthCheckRequest(service="couponmesh.risk.v1.RiskService")
            reply = health_pb2_grpc.HealthStub(channel).Check(check, timeout=5.0)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=15.0)
        assert process.returncode == 0, output
        assert "5a5a" not in output
    finally:
        process.kill()
        process.communicate()


def _port_of(process: subprocess.Popen[str]) -> int:
    """Reads the log until the service says where it serves."""
    assert process.stdout is not None
    for line in process.stdout:
        if '"service_serving"' in line:
            return int(json.loads(line)["port"])
    raise AssertionError("risk_svc ended before it served")
