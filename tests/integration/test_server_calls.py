import asyncio
import json
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from couponmesh.coupon.v1 import cashier_service_pb2_grpc
from couponmesh.coupon.v1.cashier_service_pb2 import ConsumeRequest, ConsumeResponse
from couponmesh.risk.v1 import risk_service_pb2_grpc
from couponmesh.risk.v1.risk_service_pb2 import AssessBatchRequest, Assessment
from meshkit import channel, context, mysql_errors, server
from meshkit.channel import open_channel
from meshkit.context import RequestContext
from meshkit.errors import MeshError
from meshkit.telemetry import Telemetry
from tests.integration.served import (
    CONSUME,
    TILL,
    Refusal,
    answers,
    cashier,
    eventually,
    metrics,
    order,
    refused,
    risk,
    served,
    till,
    token,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
ASSESSMENT = AssessBatchRequest(assessments=[Assessment(operation_id="op-1", kind=1, caller="till")])  # type: ignore[arg-type]  # An enum's number.


async def test_a_use_case_sees_who_calls_from_where_in_which_trace_and_until_when() -> None:
    seen: list[RequestContext] = []

    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        seen.append(context.current())
        return ConsumeResponse()

    metadata = (
        *TILL,
        ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),
        ("idempotency-key", "k-1"),
        ("x-forwarded-for", "6.6.6.6, 10.1.2.3"),
    )
    async with served(cashier(consume)) as endpoints, till(endpoints) as client:
        await client.Consume(order(), metadata=metadata, timeout=3)
    (request,) = seen
    assert (request.principal.client_id, request.principal.merchant_id) == ("till", "10086")
    assert (request.method, request.trace_id, request.idempotency_key) == (CONSUME, TRACE_ID, "k-1")
    assert request.edge_ip == "10.1.2.3"
    assert request.stored_ownership is False
    assert 0 < request.deadline - time.monotonic() + 3 < 6


async def test_an_error_reaches_the_caller_with_its_reason_and_in_both_languages() -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise MeshError("COUPON_BUSY")

    async with served(cashier(consume)) as endpoints, till(endpoints) as client:
        refusal = await refused(client.Consume(order(), metadata=TILL))
    assert (refusal.code, refusal.reason, refusal.info.domain) == (
        grpc.StatusCode.ABORTED,
        "COUPON_BUSY",
        "couponmesh",
    )
    assert set(refusal.languages) == {"zh-CN", "en"}
    assert refusal.languages["en"] == refusal.message
    assert refusal.status.code == grpc.StatusCode.ABORTED.value[0]
    assert any("一" <= letter <= "鿿" for letter in refusal.languages["zh-CN"])


async def test_who_may_not_call_is_refused_before_the_use_case_runs() -> None:
    runs: list[ConsumeRequest] = []

    async def consume(request: ConsumeRequest) -> ConsumeResponse:
        runs.append(request)
        return ConsumeResponse()

    async with served(cashier(consume)) as endpoints, till(endpoints) as client:
        nobody = await refused(client.Consume(order()))
        shopper = await refused(client.Consume(order(), metadata=(token(sub="42", roles=["user"]),)))
        foreign = await refused(client.Consume(order(merchant_id="10087"), metadata=TILL))
    assert (nobody.code, nobody.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert (shopper.code, shopper.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert shopper.metadata == {"method": CONSUME}
    assert (foreign.code, foreign.reason) == (grpc.StatusCode.PERMISSION_DENIED, "MERCHANT_NOT_OWNED")
    assert foreign.metadata == {"merchant_id": "10087"}
    assert runs == []


async def test_every_field_that_breaks_its_rule_is_named_by_its_path() -> None:
    async with served(cashier()) as endpoints, till(endpoints) as client:
        request = order(coupon_code="", request_id="not visible", client={"ip": "nowhere"})
        refusal = await refused(client.Consume(request, metadata=TILL))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")
    assert sorted(refusal.fields) == ["client.ip", "coupon_code", "request_id"]
    violations = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert {(each.field, each.description, each.localized_message.message, each.reason) for each in violations} == {
        ("coupon_code", "must not be empty", "不能为空", "STRING_MIN_LEN"),
        ("client.ip", "must be an IP address", "须为 IP 地址", "STRING_IP"),
        ("request_id", "must be at most 64 visible ASCII characters", "最多 64 个可见 ASCII 字符", "STRING_PATTERN"),
    }
    assert violations[0].localized_message.message in refusal.languages["zh-CN"]


async def test_elements_of_lists_are_named_by_their_index() -> None:
    request = AssessBatchRequest(assessments=[ASSESSMENT.assessments[0], Assessment(caller="till")])
    async with (
        served(risk(lambda: None)) as endpoints,
        grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel,
    ):
        stub = risk_service_pb2_grpc.RiskServiceStub(channel)
        refusal = await refused(stub.AssessBatch(request, metadata=(("x-mesh-service", "coupon_svc"),)))
    assert sorted(refusal.fields) == ["assessments[1].kind", "assessments[1].operation_id"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x0a\x02\xff\xfe", "INVALID_UTF8"),
        (b"\x0a\x22\xff\xfe", "VALIDATION_FAILED"),
        (b"garbage", "VALIDATION_FAILED"),
    ],
)
async def test_bytes_that_are_no_request_are_a_bad_request(raw: bytes, reason: str) -> None:
    async with (
        served(cashier()) as endpoints,
        grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel,
    ):
        refusal = await refused(channel.unary_unary(CONSUME, None, None)(raw, metadata=TILL))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert set(refusal.languages) == {"zh-CN", "en"}


@pytest.mark.parametrize("key", ["a b", "x" * 65])
async def test_an_idempotency_key_that_could_not_be_stored_is_refused(key: str) -> None:
    async with served(cashier()) as endpoints, till(endpoints) as client:
        refusal = await refused(client.Consume(order(), metadata=(*TILL, ("idempotency-key", key))))
    assert (refusal.reason, refusal.fields) == ("VALIDATION_FAILED", ["idempotency-key"])


async def test_a_defect_is_internal_to_the_caller_and_logged_with_its_place_but_no_personal_data() -> None:
    async def consume(request: ConsumeRequest) -> ConsumeResponse:
        try:
            int(request.client.phone)
        except ValueError as error:
            raise RuntimeError(f"cannot use {request.client.phone}") from error
        raise AssertionError

    request = order(client={"phone": "+8613800138000"})
    request.client.phone = "13800138000"
    request.client.device_id = "device-secret"
    metadata = (*TILL, ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"))

    async def fails(message: ConsumeRequest) -> ConsumeResponse:
        message.client.phone = f"phone {message.client.phone}"
        return await consume(message)

    with capture_logs() as events:
        async with served(cashier(fails)) as endpoints, till(endpoints) as client:
            refusal = await refused(client.Consume(request, metadata=metadata))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.metadata == {"trace_id": TRACE_ID}
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert (event["event"], event["trace_id"], event["error"]) == ("rpc_failed", TRACE_ID, "builtins.RuntimeError")
    assert event["frames"][-1].endswith(" consume")
    assert event["causes"][0].startswith("builtins.ValueError at ")
    assert "13800138000" not in repr(events) + repr(refusal.status)


async def test_a_reason_that_the_contract_lacks_is_a_defect() -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise MeshError("NO_SUCH_REASON")

    with capture_logs() as events:
        async with served(cashier(consume)) as endpoints, till(endpoints) as client:
            refusal = await refused(client.Consume(order(), metadata=TILL))
    assert refusal.reason == "INTERNAL"
    assert [event["reason"] for event in events if event["event"] == "reason_unknown"] == ["NO_SUCH_REASON"]


@pytest.mark.parametrize(
    "error",
    [
        mysql_errors.DatabaseUnavailable("coupon_0: away"),
        mysql_errors.DatabaseTimeout("coupon_0: slow"),
        mysql_errors.CommitOutcomeUnknown("coupon_0: lost"),
        mysql_errors.Deadlock("coupon_0: again"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_database_that_is_away_is_no_defect_and_the_call_may_be_repeated(
    error: mysql_errors.DatabaseError,
) -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise error

    with capture_logs() as events:
        async with served(cashier(consume)) as endpoints, till(endpoints) as client:
            refusal = await refused(client.Consume(order(), metadata=TILL))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert refusal.metadata == {"part": "mysql"}
    assert not [event for event in events if event["log_level"] == "error"]


class Sleeper:
    """A use case that never ends by itself, and tells how it was ended."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.remaining_s = 0.0

    async def __call__(self, _: ConsumeRequest) -> ConsumeResponse:
        self.remaining_s = context.current().remaining_s()
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


async def answered(metrics_text: str, code: str, reason: str) -> bool:
    return f'mesh_rpc_requests_total{{code="{code}",reason="{reason}",rpc="{CONSUME}"}} 1.0' in metrics_text


async def test_a_callers_own_deadline_ends_the_use_case() -> None:
    sleeper = Sleeper()
    async with served(cashier(sleeper)) as endpoints, till(endpoints) as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.Consume(order(), metadata=TILL, timeout=0.2)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await sleeper.cancelled.wait()
        assert 0 < sleeper.remaining_s < 0.3

        async def counted() -> bool:
            return await answered(await metrics(endpoints), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")

        await eventually(counted)


@pytest.mark.parametrize(
    ("timeout_s", "limits"),
    [(None, {"default_deadline_ms": 150}), (30.0, {"max_deadline_ms": 150})],
    ids=["none stated", "one beyond the bound"],
)
async def test_a_call_without_a_useful_deadline_gets_ours(timeout_s: float | None, limits: dict[str, int]) -> None:
    sleeper = Sleeper()
    async with served(cashier(sleeper), **limits) as endpoints, till(endpoints) as client:
        began = time.monotonic()
        refusal = await refused(client.Consume(order(), metadata=TILL, timeout=timeout_s))
        took_s = time.monotonic() - began
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert set(refusal.languages) == {"zh-CN", "en"}
    assert sleeper.cancelled.is_set()
    assert 0.1 < took_s < 5
    assert 0 < sleeper.remaining_s <= 0.15


async def test_a_timeout_inside_the_deadline_is_a_defect_not_a_deadline() -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise TimeoutError

    async with served(cashier(consume)) as endpoints, till(endpoints) as client:
        assert (await refused(client.Consume(order(), metadata=TILL))).reason == "INTERNAL"


async def test_a_caller_that_goes_away_is_counted_as_cancelled() -> None:
    sleeper = Sleeper()
    async with served(cashier(sleeper)) as endpoints, till(endpoints) as client:
        call = client.Consume(order(), metadata=TILL)
        async with asyncio.timeout(5):
            await sleeper.entered.wait()
            call.cancel()
            await sleeper.cancelled.wait()

        async def counted() -> bool:
            return await answered(await metrics(endpoints), "CANCELLED", "CANCELLED")

        await eventually(counted)


async def test_the_call_beyond_the_bound_is_overloaded_at_once_and_the_next_one_is_served_again() -> None:
    sleeper = Sleeper()
    async with served(cashier(sleeper), max_in_flight=1) as endpoints, till(endpoints) as client:
        first = client.Consume(order(), metadata=TILL)
        async with asyncio.timeout(5):
            await sleeper.entered.wait()
        refusal = await refused(client.Consume(order(), metadata=TILL))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        first.cancel()
        async with asyncio.timeout(5):
            await sleeper.cancelled.wait()
        sleeper.entered.clear()
        again = client.Consume(order(), metadata=TILL)
        async with asyncio.timeout(5):
            await sleeper.entered.wait()
        again.cancel()


async def test_calls_errors_and_durations_are_counted_without_any_id_as_label() -> None:
    async def consume(request: ConsumeRequest) -> ConsumeResponse:
        if request.order_id == "o-2":
            raise MeshError("COUPON_BUSY")
        return await answers(request)

    async with served(cashier(consume)) as endpoints, till(endpoints) as client:
        await client.Consume(order(order_id="o-1"), metadata=TILL)
        await refused(client.Consume(order(order_id="o-2"), metadata=TILL))
        text = await metrics(endpoints)
    assert await answered(text, "OK", "OK")
    assert await answered(text, "ABORTED", "COUPON_BUSY")
    assert f'mesh_rpc_duration_seconds_count{{rpc="{CONSUME}"}} 2.0' in text
    assert "mesh_rpc_in_flight 0.0" in text
    assert not any(secret in text for secret in ("10086", "o-1", "till", "7XK9"))


async def test_each_request_is_logged_at_debug_only() -> None:
    for level, lines in (("DEBUG", 1), ("INFO", 0)):
        with capture_logs() as events:
            async with served(cashier(), log_level=level) as endpoints, till(endpoints) as client:
                await client.Consume(order(), metadata=TILL)
        assert len([event for event in events if event["event"] == "rpc_answered"]) == lines


def spans(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


async def hop(folder: Path, *, sample_ratio: float, metadata: tuple[tuple[str, str], ...]) -> list[RequestContext]:
    """One call that a cashier service answers by calling a risk service; gives what either saw."""
    seen: list[RequestContext] = []
    telemetry = Telemetry("coupon_svc", trace_file=folder / "client.jsonl")
    async with (
        served(
            risk(lambda: seen.append(context.current())),
            service_name="risk_svc",
            trace_file=folder / "risk.jsonl",
            trace_sample_ratio=0.0,
        ) as far,
        open_channel(f"127.0.0.1:{far.port}", "coupon_svc", telemetry) as channel,
    ):
        assess = risk_service_pb2_grpc.RiskServiceStub(channel)

        async def consume(_: ConsumeRequest) -> ConsumeResponse:
            seen.append(context.current())
            await assess.AssessBatch(ASSESSMENT)
            return ConsumeResponse()

        async with (
            served(
                cashier(consume),
                service_name="coupon_svc",
                trace_file=folder / "coupon.jsonl",
                trace_sample_ratio=sample_ratio,
            ) as near,
            till(near) as client,
        ):
            await client.Consume(order(), metadata=metadata, timeout=4)
    telemetry.close()
    return seen


async def test_two_services_share_a_trace_whose_spans_nest(tmp_path: Path) -> None:
    near, far = await hop(tmp_path, sample_ratio=1.0, metadata=TILL)

    assert near.trace_id == far.trace_id
    (coupon,), (client,), (risk_span,) = (
        spans(tmp_path / name) for name in ("coupon.jsonl", "client.jsonl", "risk.jsonl")
    )
    assert {coupon["trace_id"], client["trace_id"], risk_span["trace_id"]} == {near.trace_id}
    assert coupon["parent_span_id"] == ""
    assert client["parent_span_id"] == coupon["span_id"]
    assert risk_span["parent_span_id"] == client["span_id"]
    assert (coupon["name"], coupon["kind"], coupon["service"]) == (CONSUME, "SERVER", "coupon_svc")
    assert (client["kind"], risk_span["service"]) == ("CLIENT", "risk_svc")


async def test_a_hop_says_which_service_calls_and_passes_the_deadline_on(tmp_path: Path) -> None:
    near, far = await hop(tmp_path, sample_ratio=0.0, metadata=TILL)
    assert (far.principal.service, far.principal.client_id) == ("coupon_svc", "coupon_svc")
    assert far.deadline <= near.deadline + 0.05


async def test_a_request_that_is_not_sampled_writes_no_span_but_keeps_its_trace_id(tmp_path: Path) -> None:
    metadata = (*TILL, ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"))
    near, far = await hop(tmp_path, sample_ratio=0.0, metadata=metadata)
    assert near.trace_id == far.trace_id == TRACE_ID
    assert [spans(tmp_path / name) for name in ("coupon.jsonl", "client.jsonl", "risk.jsonl")] == [[], [], []]


async def test_a_client_cannot_have_its_call_sampled(tmp_path: Path) -> None:
    metadata = (*TILL, ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"))
    near, _ = await hop(tmp_path, sample_ratio=0.0, metadata=metadata)
    assert near.trace_id == TRACE_ID
    assert [spans(tmp_path / name) for name in ("coupon.jsonl", "client.jsonl", "risk.jsonl")] == [[], [], []]


async def test_a_service_that_samples_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "risk.jsonl"
    metadata = (("x-mesh-service", "coupon_svc"), ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"))
    async with (
        served(risk(lambda: None), service_name="risk_svc", trace_file=file, trace_sample_ratio=0.0) as endpoints,
        grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as opened,
    ):
        await risk_service_pb2_grpc.RiskServiceStub(opened).AssessBatch(ASSESSMENT, metadata=metadata)
    (span,) = spans(file)
    assert (span["trace_id"], span["parent_span_id"]) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize(
    ("refusal", "who", "caller"),
    [
        (MeshError("RISK_REJECTED", rules="user-hourly"), TILL, "till"),
        (MeshError("RISK_UNAVAILABLE"), TILL, "till"),
        (
            MeshError("RISK_REJECTED", rules="user-hourly"),
            (token(sub="42", roles=["cashier"], merchant_id="10086"),),
            "",
        ),
    ],
    ids=["rejected", "unavailable", "a person"],
)
async def test_a_refusal_by_risk_control_is_logged_without_naming_a_person(
    refusal: MeshError, who: tuple[tuple[str, str], ...], caller: str
) -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise refusal

    with capture_logs() as events:
        async with served(cashier(consume)) as endpoints, till(endpoints) as client:
            metadata = (*who, ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"))
            assert (await refused(client.Consume(order(), metadata=metadata))).reason == refusal.reason
    (event,) = [event for event in events if event["event"] == "risk_refused"]
    assert event == {
        "event": "risk_refused",
        "log_level": "info",
        "source": "meshkit.rpc",
        "rpc": CONSUME,
        "reason": refusal.reason,
        "rules": refusal.metadata.get("rules", ""),
        "caller": caller,
        "trace_id": TRACE_ID,
    }


async def test_an_internal_error_that_a_use_case_raises_itself_is_logged() -> None:
    async def consume(_: ConsumeRequest) -> ConsumeResponse:
        raise MeshError("INTERNAL")

    with capture_logs() as events:
        async with served(cashier(consume)) as endpoints, till(endpoints) as client:
            refusal = await refused(client.Consume(order(), metadata=TILL))
    (event,) = [event for event in events if event["event"] == "rpc_failed"]
    assert (event["log_level"], event["trace_id"]) == ("error", refusal.metadata["trace_id"])


async def test_a_channel_finds_a_server_that_was_long_away_within_a_second() -> None:
    telemetry = Telemetry("till")
    async with served(cashier()) as first:
        channel = open_channel(f"127.0.0.1:{first.port}", "till", telemetry)
        stub = cashier_service_pb2_grpc.CashierServiceStub(channel)
        assert (await refused(stub.Consume(order()))).reason == "PERMISSION_DENIED"
    left = time.monotonic()

    async def has_been_away_for_long() -> bool:
        # With each failed attempt the next one is further off; unbounded, the gap would be above a second by then.
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Consume(order())
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        return time.monotonic() - left > 3

    await eventually(has_been_away_for_long)
    async with served(cashier(), listen=f"127.0.0.1:{first.port}"):
        returned = time.monotonic()

        async def is_found() -> bool:
            try:
                await stub.Consume(order())
            except grpc.aio.AioRpcError as error:
                return error.code() is not grpc.StatusCode.UNAVAILABLE and Refusal(error).reason == "PERMISSION_DENIED"
            return False

        await eventually(is_found, within_s=10)
        assert time.monotonic() - returned < 1.5
        await channel.close(None)
    telemetry.close()


async def test_a_channel_that_pings_while_idle_is_not_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # gRPC's core sends no pings that are closer together.
    ping_every_ms = 1_000
    options = dict(channel.OPTIONS) | {"grpc.keepalive_time_ms": ping_every_ms}
    monkeypatch.setattr(channel, "OPTIONS", tuple(options.items()))
    monkeypatch.setattr(server, "SHORTEST_PING_INTERVAL_MS", ping_every_ms // 2)
    telemetry = Telemetry("till")
    async with served(cashier()) as endpoints, open_channel(f"127.0.0.1:{endpoints.port}", "till", telemetry) as opened:
        stub = cashier_service_pb2_grpc.CashierServiceStub(opened)
        for _ in range(20):
            assert (await refused(stub.Consume(order()))).reason == "PERMISSION_DENIED"
        ready = opened.get_state()
        assert ready is grpc.ChannelConnectivity.READY
        # A server that minds pings takes two and says GOAWAY at the third.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(6 * ping_every_ms / 1000):
                await opened.wait_for_state_change(ready)
    telemetry.close()


def test_a_server_takes_pings_twice_as_often_as_channels_send_them() -> None:
    assert dict(channel.OPTIONS)["grpc.keepalive_time_ms"] >= server.SHORTEST_PING_INTERVAL_MS * 2
