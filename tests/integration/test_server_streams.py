import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterable
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from couponmesh.coupon.v1.audit_pb2 import VerifyAuditTrailRequest, VerifyAuditTrailResponse
from meshkit import context
from meshkit.context import RequestContext
from meshkit.errors import MeshError
from meshkit.mysql_errors import DatabaseUnavailable
from tests.integration.served import (
    AUDITOR,
    TILL,
    VERIFY,
    Refusal,
    coupons,
    desk,
    eventually,
    metrics,
    refused,
    served,
    token,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SHARD = VerifyAuditTrailRequest(shard=7)
Replies = AsyncGenerator[VerifyAuditTrailResponse, None]


async def collected(stream: AsyncIterable[VerifyAuditTrailResponse]) -> list[str]:
    return [reply.resume_token async for reply in stream]


async def broken(stream: AsyncIterable[VerifyAuditTrailResponse]) -> tuple[list[str], Refusal]:
    """The replies of a stream that ended with an error, and the error."""
    tokens: list[str] = []

    async def read() -> None:
        async for reply in stream:
            tokens.append(reply.resume_token)  # noqa: PERF401 - what came before the error counts.

    return tokens, await refused(read())


def counted(text: str, code: str, reason: str) -> bool:
    return f'mesh_rpc_requests_total{{code="{code}",reason="{reason}",rpc="{VERIFY}"}} 1.0' in text


async def three(request: VerifyAuditTrailRequest) -> Replies:
    for number in range(3):
        yield VerifyAuditTrailResponse(resume_token=f"{request.shard}-{number}")


async def test_replies_arrive_in_order_and_count_as_one_call() -> None:
    async with served(coupons(three)) as endpoints, desk(endpoints) as client:
        assert await collected(client.VerifyAuditTrail(SHARD, metadata=AUDITOR)) == ["7-0", "7-1", "7-2"]
        text = await metrics(endpoints)
    assert counted(text, "OK", "OK")
    assert f'mesh_rpc_duration_seconds_count{{rpc="{VERIFY}"}} 1.0' in text
    assert "mesh_rpc_in_flight 0.0" in text


async def test_each_reply_is_sent_when_it_is_made() -> None:
    go_on = asyncio.Event()

    async def waits(_: VerifyAuditTrailRequest) -> Replies:
        yield VerifyAuditTrailResponse(resume_token="first")
        await go_on.wait()
        yield VerifyAuditTrailResponse(resume_token="second")

    async with served(coupons(waits)) as endpoints, desk(endpoints) as client:
        stream = client.VerifyAuditTrail(SHARD, metadata=AUDITOR)
        assert (await stream.read()).resume_token == "first"
        go_on.set()
        assert (await stream.read()).resume_token == "second"
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # The stubs lack it.


async def test_a_stream_sees_who_calls_in_which_trace_and_until_when() -> None:
    seen: list[RequestContext] = []

    async def look(_: VerifyAuditTrailRequest) -> Replies:
        seen.append(context.current())
        yield VerifyAuditTrailResponse()
        await asyncio.sleep(0)
        seen.append(context.current())

    metadata = (*AUDITOR, ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-00"))
    async with served(coupons(look)) as endpoints, desk(endpoints) as client:
        await collected(client.VerifyAuditTrail(SHARD, metadata=metadata, timeout=3))
    first, second = seen
    assert first is second
    assert (first.principal.client_id, first.method, first.trace_id) == ("audit-desk", VERIFY, TRACE_ID)
    assert -3 < first.deadline - time.monotonic() < 3


async def test_who_may_not_call_and_what_breaks_a_rule_is_refused_before_the_use_case_runs() -> None:
    runs: list[VerifyAuditTrailRequest] = []

    async def notes(request: VerifyAuditTrailRequest) -> Replies:
        runs.append(request)
        yield VerifyAuditTrailResponse()

    async with served(coupons(notes)) as endpoints, desk(endpoints) as client:
        nobody = await refused(collected(client.VerifyAuditTrail(SHARD)))
        shopper = await refused(collected(client.VerifyAuditTrail(SHARD, metadata=(token(sub="4", roles=["user"]),))))
        cashier = await refused(collected(client.VerifyAuditTrail(SHARD, metadata=TILL)))
        beyond = VerifyAuditTrailRequest(shard=128)
        wrong = await refused(collected(client.VerifyAuditTrail(beyond, metadata=AUDITOR)))
        nothing = await refused(collected(client.VerifyAuditTrail(VerifyAuditTrailRequest(), metadata=AUDITOR)))
    assert (nobody.code, nobody.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert {shopper.reason, cashier.reason} == {"PERMISSION_DENIED"}
    assert (wrong.reason, wrong.fields) == ("VALIDATION_FAILED", ["shard"])
    assert (nothing.reason, nothing.fields) == ("VALIDATION_FAILED", ["scope"])
    assert runs == []


async def test_bytes_that_are_no_request_are_a_bad_request() -> None:
    async with (
        served(coupons(three)) as endpoints,
        grpc.aio.insecure_channel(f"127.0.0.1:{endpoints.port}") as channel,
    ):
        call = channel.unary_stream(VERIFY, None, VerifyAuditTrailResponse.FromString)
        refusal = await refused(collected(call(b"garbage", metadata=AUDITOR)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (MeshError("COUPON_NOT_FOUND"), grpc.StatusCode.NOT_FOUND, "COUPON_NOT_FOUND"),
        (DatabaseUnavailable("coupon_0: away"), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (RuntimeError("phone 13800138000"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
    ids=["refusal", "database away", "defect"],
)
@pytest.mark.parametrize("replies", [0, 2])
async def test_an_error_ends_the_stream_with_its_reason_in_both_languages_after_what_was_sent(
    error: Exception, code: grpc.StatusCode, reason: str, replies: int
) -> None:
    async def fails(_: VerifyAuditTrailRequest) -> Replies:
        for number in range(replies):
            yield VerifyAuditTrailResponse(resume_token=str(number))
        raise error

    with capture_logs() as events:
        async with served(coupons(fails)) as endpoints, desk(endpoints) as client:
            sent, refusal = await broken(client.VerifyAuditTrail(SHARD, metadata=AUDITOR))
            assert counted(await metrics(endpoints), code.name, reason)
    assert sent == [str(number) for number in range(replies)]
    assert (refusal.code, refusal.reason) == (code, reason)
    assert set(refusal.languages) == {"zh-CN", "en"}
    assert "13800138000" not in repr(events) + repr(refusal.status)


class Endless:
    """A use case that sends one reply and then never ends by itself, and tells how it was ended."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, _: VerifyAuditTrailRequest) -> Replies:
        yield VerifyAuditTrailResponse(resume_token="one")
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.closed.set()


@pytest.mark.parametrize(
    ("timeout_s", "limits"),
    [(None, {"default_deadline_ms": 150}), (30.0, {"max_deadline_ms": 150})],
    ids=["none stated", "one beyond the bound"],
)
async def test_a_stream_without_a_useful_deadline_gets_ours(timeout_s: float | None, limits: dict[str, int]) -> None:
    endless = Endless()
    async with served(coupons(endless), **limits) as endpoints, desk(endpoints) as client:
        sent, refusal = await broken(client.VerifyAuditTrail(SHARD, metadata=AUDITOR, timeout=timeout_s))
    assert sent == ["one"]
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert endless.closed.is_set()


async def test_a_callers_own_deadline_ends_the_stream() -> None:
    endless = Endless()
    async with served(coupons(endless)) as endpoints, desk(endpoints) as client:
        _, refusal = await broken(client.VerifyAuditTrail(SHARD, metadata=AUDITOR, timeout=0.2))
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await endless.closed.wait()

        async def noted() -> bool:
            return counted(await metrics(endpoints), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")

        await eventually(noted)


async def test_a_caller_that_goes_away_while_replies_are_sent_closes_the_use_case_and_counts_as_cancelled() -> None:
    closed, sent = asyncio.Event(), 0

    async def floods(_: VerifyAuditTrailRequest) -> Replies:
        nonlocal sent
        try:
            while True:
                yield VerifyAuditTrailResponse(resume_token="x" * 10_000)
                sent += 1
        finally:
            closed.set()

    with capture_logs() as events:
        async with served(coupons(floods)) as endpoints, desk(endpoints) as client:
            stream = client.VerifyAuditTrail(SHARD, metadata=AUDITOR)
            await stream.read()
            stream.cancel()
            async with asyncio.timeout(5):
                await closed.wait()

            async def noted() -> bool:
                return counted(await metrics(endpoints), "CANCELLED", "CANCELLED")

            await eventually(noted)
            gc.collect()
    assert [event for event in events if event["log_level"] == "error"] == []


async def test_a_reader_that_stops_reading_stops_the_use_case() -> None:
    sent = 0

    async def floods(_: VerifyAuditTrailRequest) -> Replies:
        nonlocal sent
        while sent < 1_000:
            sent += 1
            yield VerifyAuditTrailResponse(resume_token="x" * 100_000)

    async with served(coupons(floods)) as endpoints, desk(endpoints) as client:
        stream = client.VerifyAuditTrail(SHARD, metadata=AUDITOR)
        await stream.read()
        stalled_at = -1

        async def stalled() -> bool:
            nonlocal stalled_at
            before, stalled_at = stalled_at, sent
            await asyncio.sleep(0.1)
            return sent == stalled_at == before

        await eventually(stalled)
        assert sent < 1_000
        for _ in range(999):
            await stream.read()
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # The stubs lack it.


async def test_a_connection_that_breaks_while_replies_are_sent_is_no_defect() -> None:
    closed = asyncio.Event()

    async def floods(_: VerifyAuditTrailRequest) -> Replies:
        try:
            while True:
                yield VerifyAuditTrailResponse(resume_token="x" * 100_000)
        finally:
            closed.set()

    with capture_logs() as events:
        async with served(coupons(floods)) as endpoints:
            async with desk(endpoints) as client:
                await client.VerifyAuditTrail(SHARD, metadata=AUDITOR).read()
            async with asyncio.timeout(5):
                await closed.wait()
    assert [event for event in events if event["log_level"] == "error"] == []


async def test_a_server_that_stops_in_mid_stream_reports_no_defect() -> None:
    endless = Endless()
    with capture_logs() as events:
        async with served(coupons(endless), grace_s=0.0) as endpoints, desk(endpoints) as client:
            stream = client.VerifyAuditTrail(SHARD, metadata=AUDITOR)
            await stream.read()
            async with asyncio.timeout(5):
                await endless.entered.wait()
    assert [event for event in events if event["log_level"] == "error"] == []


async def test_a_stream_counts_among_the_calls_in_flight() -> None:
    endless = Endless()
    async with served(coupons(endless), max_in_flight=1) as endpoints, desk(endpoints) as client:
        first = client.VerifyAuditTrail(SHARD, metadata=AUDITOR)
        async with asyncio.timeout(5):
            await endless.entered.wait()
        refusal = await refused(collected(client.VerifyAuditTrail(SHARD, metadata=AUDITOR)))
        assert refusal.reason == "OVERLOADED"
        first.cancel()
        async with asyncio.timeout(5):
            await endless.closed.wait()


async def test_a_sampled_stream_is_one_span(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    async with served(coupons(three), trace_file=file, trace_sample_ratio=1.0) as endpoints, desk(endpoints) as client:
        await collected(client.VerifyAuditTrail(SHARD, metadata=AUDITOR))
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert f'"name": "{VERIFY}"' in line
