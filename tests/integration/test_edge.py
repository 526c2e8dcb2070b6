import asyncio
import json
import re
import ssl
import stat
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from couponmesh.coupon.v1 import (
    batch_service_pb2,
    batch_service_pb2_grpc,
    cashier_service_pb2,
    cashier_service_pb2_grpc,
    coupon_service_pb2,
    coupon_service_pb2_grpc,
)
from meshctl.edge.render import EdgeSettings, render, validate
from meshctl.edge.tokens import Claims, DevKeys
from tests.harness.edge import ENVOY, Edge, ScriptedServices, free_port, running_edge, scripted_services

CONSUME = "/api/v1/coupon/consume"
CONSUME_RPC = "/couponmesh.coupon.v1.CashierService/Consume"
GIVEN = b'{"coupon_code":"7XK9-B2T4","merchant_id":"10086","amount":150.00}'
JSON = {"content-type": "application/json"}
BODY_MAX_BYTES = 100_000
ROUTE_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
async def services() -> AsyncIterator[ScriptedServices]:
    async with scripted_services() as running:
        yield running


@pytest.fixture(scope="module")
async def edge(services: ScriptedServices, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with running_edge(
        tmp_path_factory.mktemp("edge"),
        coupon=[services.port],
        body_max_bytes=BODY_MAX_BYTES,
        route_timeout_s=ROUTE_TIMEOUT_S,
    ) as running:
        yield running
        for script in ("envelope", "gate", "body"):
            # A script that fails lets the call through as if it were not there.
            assert await running.statistic(f"http.edge.lua.{script}.errors") == 0


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
async def client(request: pytest.FixtureRequest, edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with edge.client(http2=request.param == "HTTP/2") as open_client:
        yield open_client


def seen_by(services: ScriptedServices, request_id: str) -> Any:
    return next(seen for seen in reversed(services.seen) if seen.metadata["x-request-id"] == request_id)


@dataclass(frozen=True)
class Row:
    """One call and the reply that it must get."""

    status: int
    reason: str = ""
    method: str = "POST"
    path: str = CONSUME
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    retryable: bool = False

    def __str__(self) -> str:
        return f"{self.status}-{self.reason}-{self.method}-{self.path[:40]}-{str(self.body)[:40]}"


ROWS = [
    Row(200, body=GIVEN),
    Row(200, body={"couponCode": "7XK9-B2T4", "merchantId": "10086", "amount": "150.00"}),
    Row(200, method="GET", path="/api/v1/users/42/coupons?page_size=3"),
    # A stream of replies is an array; one that breaks off is an error, whatever came before.
    Row(200, method="GET", path="/api/v1/audit:verify?shard=0"),
    Row(200, method="GET", path="/api/v1/audit:verify?shard=3"),
    Row(404, "COUPON_NOT_FOUND", method="GET", path="/api/v1/audit:verify?resume_token=COUPON_NOT_FOUND"),
    *(
        Row(
            503, "UNAVAILABLE", method="GET", path=f"/api/v1/audit:verify?shard=3&resume_token={broken}", retryable=True
        )
        for broken in ("UNAVAILABLE", "BARE_UNAVAILABLE")
    ),
    # What the services refuse.
    Row(400, "BELOW_MIN_AMOUNT", body={"coupon_code": "BELOW_MIN_AMOUNT"}, metadata={"min_amount": "100.00"}),
    Row(400, "VALIDATION_FAILED", body={"coupon_code": "VALIDATION_FAILED"}, metadata={"problem": "没有"}),
    Row(403, "PERMISSION_DENIED", body={"coupon_code": "PERMISSION_DENIED"}),
    Row(403, "MERCHANT_NOT_OWNED", body={"coupon_code": "MERCHANT_NOT_OWNED"}, metadata={"merchant_id": "10087"}),
    Row(404, "COUPON_NOT_FOUND", body={"coupon_code": "COUPON_NOT_FOUND"}),
    Row(404, "BATCH_NOT_FOUND", method="GET", path="/api/v1/batches/BATCH_NOT_FOUND"),
    Row(409, "COUPON_BUSY", body={"coupon_code": "COUPON_BUSY"}, retryable=True),
    Row(409, "CODE_ALREADY_EXISTS", body={"coupon_code": "CODE_ALREADY_EXISTS"}),
    Row(429, "OVERLOADED", body={"coupon_code": "OVERLOADED"}, retryable=True),
    Row(499, "CANCELLED", body={"coupon_code": "CANCELLED"}),
    Row(500, "INTERNAL", body={"coupon_code": "INTERNAL"}),
    Row(503, "UNAVAILABLE", body={"coupon_code": "UNAVAILABLE"}, retryable=True),
    Row(503, "UNAVAILABLE", body={"coupon_code": "BARE_UNAVAILABLE"}, retryable=True),
    Row(504, "DEADLINE_EXCEEDED", body={"coupon_code": "DEADLINE_EXCEEDED"}, retryable=True),
    # What Envoy refuses.
    Row(504, "DEADLINE_EXCEEDED", body={"coupon_code": "HANG"}, retryable=True),
    Row(401, "UNAUTHENTICATED", headers={"authorization": ""}),
    Row(401, "UNAUTHENTICATED", headers={"authorization": "Bearer not.a.token"}),
    Row(401, "UNAUTHENTICATED", headers={"authorization": "Basic dXNlcjpwYXNz"}),
    Row(404, "ROUTE_NOT_FOUND", path="/api/v1/nothing"),
    Row(404, "ROUTE_NOT_FOUND", method="GET", path="/"),
    Row(404, "ROUTE_NOT_FOUND", path="/api/v1/nothing", headers={"authorization": ""}),
    Row(404, "ROUTE_NOT_FOUND", path=CONSUME_RPC),
    Row(404, "ROUTE_NOT_FOUND", method="GET", path="/api/v1/coupons/1%2F2"),
    Row(405, "METHOD_NOT_ALLOWED", method="GET"),
    Row(405, "METHOD_NOT_ALLOWED", method="DELETE", path="/api/v1/batches/1"),
    Row(413, "BODY_TOO_LARGE", body={"coupon_code": "x" * BODY_MAX_BYTES}),
    Row(415, "UNSUPPORTED_MEDIA_TYPE", body=GIVEN, headers={"content-type": "text/plain"}),
    Row(415, "UNSUPPORTED_MEDIA_TYPE", body=GIVEN, headers={"content-type": "application/x-www-form-urlencoded"}),
    Row(400, "MALFORMED_JSON", body=b""),
    Row(400, "MALFORMED_JSON", body=b'{"amount":'),
    Row(400, "MALFORMED_JSON", body=b"[1]"),
    Row(400, "MALFORMED_JSON", body=b'{"amount":1,"amount":2}'),
    Row(400, "MALFORMED_JSON", body=b'{"amount":1e999}'),
    Row(400, "MALFORMED_JSON", body={"coupon_code": 5}),
    Row(400, "MALFORMED_JSON", body={"coupon_code": ["a"]}),
    Row(400, "MALFORMED_JSON", body={"coupon_code": {"a": 1}}),
    Row(400, "MALFORMED_JSON", body={"client": "x"}),
    Row(400, "MALFORMED_JSON", body={"amount": "much"}),
    Row(400, "MALFORMED_JSON", path="/api/v1/batches/1:block", body={"batch_id": "2"}),
    Row(400, "MALFORMED_JSON", path="/api/v1/batches/1:block", body={"block_scope": "NOPE"}),
    Row(400, "INVALID_UTF8", body=b'{"coupon_code":"\xff"}'),
    Row(400, "UNKNOWN_FIELD", body={"coupon_cod": "A"}, metadata={"field": "coupon_cod"}),
    Row(400, "UNKNOWN_FIELD", body={"client": {"colour": "red"}}, metadata={"field": "client.colour"}),
    Row(400, "UNKNOWN_FIELD", path=f"{CONSUME}?amount=1", metadata={"field": "amount"}),
    Row(400, "UNKNOWN_FIELD", method="GET", path="/api/v1/users/42/coupons?user_id=43", metadata={"field": "user_id"}),
    Row(400, "VALIDATION_FAILED", method="GET", path="/api/v1/users/none/coupons", metadata={"field": "user_id"}),
    Row(400, "VALIDATION_FAILED", method="GET", path="/api/v1/coupons/%00", metadata={"field": "request"}),
]


async def send(client: httpx.AsyncClient, row: Row) -> httpx.Response:
    content = row.body if isinstance(row.body, bytes) else json.dumps(row.body).encode()
    has_body = row.method not in {"GET", "DELETE"}
    headers = {**(JSON if has_body else {}), **row.headers}
    return await client.request(row.method, row.path, content=content if has_body else None, headers=headers)


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_every_reply_is_an_envelope_with_its_status_and_reason(client: httpx.AsyncClient, row: Row) -> None:
    reply = await send(client, row)
    assert reply.status_code == row.status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert "server" not in reply.headers
    assert not [name for name in reply.headers if name.startswith(("grpc-", "x-envoy-"))]
    envelope = reply.json()
    assert envelope["code"] == row.status
    if not row.reason:
        assert list(envelope) == ["code", "data"]
        return
    retry = ["retry_after_ms"] if row.retryable else []
    assert list(envelope) == ["code", "data", "reason", "message", "request_id", "trace_id", *retry]
    assert envelope["reason"] == row.reason
    assert any("\u4e00" <= character <= "\u9fff" for character in envelope["message"])
    info = next(detail for detail in envelope["data"]["details"] if detail["@type"].endswith("ErrorInfo"))
    assert (info["reason"], info["domain"]) == (row.reason, "couponmesh")
    assert row.metadata.items() <= info["metadata"].items()
    said = {detail["locale"]: detail["message"] for detail in envelope["data"]["details"] if "locale" in detail}
    assert list(said) == ["zh-CN", "en"]
    assert said["zh-CN"] == envelope["message"]
    assert said["en"] == envelope["data"]["message"]
    assert not re.search("TYPE_|googleapis|[Pp]roto|couponmesh", envelope["message"])
    waits = [detail for detail in envelope["data"]["details"] if "retry_delay" in detail]
    assert bool(waits) == row.retryable
    assert ("retry-after" in reply.headers) == row.retryable
    if "x-request-id" in reply.headers:
        assert envelope["request_id"] == reply.headers["x-request-id"]
        assert envelope["trace_id"] == reply.headers["x-request-id"].replace("-", "")


async def test_the_given_request_byte_for_byte_gets_the_given_reply(client: httpx.AsyncClient) -> None:
    reply = await client.post(CONSUME, content=GIVEN, headers=JSON)
    assert reply.text.startswith('{"code":200,"data":{"transaction_id":"TX202508110001"')
    assert reply.json()["data"]["deduction"] == {"currency_code": "CNY", "amount_minor": "15000"}
    assert reply.headers["cache-control"] == "no-store"


async def test_a_stream_of_replies_arrives_whole_and_in_order(client: httpx.AsyncClient) -> None:
    reply = await client.get("/api/v1/audit:verify", params={"shard": 120})
    assert [each["resume_token"] for each in reply.json()["data"]] == [str(number) for number in range(120)]


async def test_an_internal_address_in_a_bare_status_does_not_leave_the_edge(client: httpx.AsyncClient) -> None:
    reply = await client.post(CONSUME, json={"coupon_code": "BARE_UNAVAILABLE"})
    assert reply.status_code == 503
    assert "10.1.2.3" not in reply.text


async def test_an_error_speaks_english_and_names_the_callers_ids(client: httpx.AsyncClient) -> None:
    asked = {
        "accept-language": "en-GB,en;q=0.9,zh;q=0.1",
        "idempotency-key": "order-7",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    reply = (await client.post(CONSUME, json={"coupon_code": "COUPON_BUSY"}, headers=asked)).json()
    assert reply["message"] == "The coupon is in use by another request. Please try again."
    assert reply["request_id"] == "order-7"
    assert reply["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert reply["retry_after_ms"] == 100


async def test_an_error_names_the_request_id_of_the_body(client: httpx.AsyncClient) -> None:
    reply = await client.post(CONSUME, json={"request_id": "r-1", "coupon_code": "COUPON_BUSY"})
    assert reply.json()["request_id"] == "r-1"


async def test_405_says_which_method_is_allowed_and_head_has_no_body(client: httpx.AsyncClient) -> None:
    assert (await client.get(CONSUME)).headers["allow"] == "POST"
    head = await client.head(CONSUME)
    assert (head.status_code, head.content) == (405, b"")
    # A body after all would be read as the beginning of this reply.
    assert (await client.post(CONSUME, json={})).status_code == 200


async def test_a_body_of_unknown_length_over_the_limit_gets_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"coupon_code":"'
        for _ in range(BODY_MAX_BYTES // 1000):
            yield b"x" * 1000
        yield b'"}'

    reply = await client.post(CONSUME, content=chunks(), headers=JSON)
    assert (reply.status_code, reply.json()["reason"]) == (413, "BODY_TOO_LARGE")


# Refusals that need nothing of the body; each was lost by curl now and then when the edge did not wait for it.
EARLY_REFUSALS = {
    "unsupported media type": (415, CONSUME, ["-H", "content-type: text/plain"]),
    "compressed": (415, CONSUME, ["-H", "content-encoding: gzip"]),
    "no token": (401, CONSUME, ["-H", "authorization:"]),
    "bad token": (401, CONSUME, ["-H", "authorization: Bearer not.a.token"]),
    "unknown path": (404, "/api/v1/nothing", []),
    "unknown path outside of REST": (404, "/nothing", []),
    "gRPC path": (404, CONSUME_RPC, []),
    "other method": (405, "/api/v1/batches/1", []),
    "stray query": (400, f"{CONSUME}?amount=1", []),
}
EARLY_CALLS = 20


@pytest.mark.parametrize("body_bytes", [200, 90_000])
@pytest.mark.parametrize("kind", EARLY_REFUSALS)
async def test_curl_over_http2_never_loses_a_refusal_that_needs_nothing_of_the_body(
    edge: Edge, kind: str, body_bytes: int, tmp_path: Path
) -> None:
    status, path, options = EARLY_REFUSALS[kind]
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"coupon_code": "x" * body_bytes}))
    base = ["-sS", "--http2", "--max-time", "20", "--cacert", str(edge.authority), "-X", "POST"]
    # A header given twice is sent twice, so the kind's own take the place of these.
    given = {"content-type": "application/json", "authorization": f"Bearer {edge.token()}"}
    given |= {name: value.strip() for name, _, value in (text.partition(":") for text in options[1::2])}
    headers = [word for name, value in given.items() for word in ("-H", f"{name}: {value}")]
    shown = ["--data-binary", f"@{body}", "-w", "\n%{http_code} %{http_version}", f"{edge.url}{path}"]

    async def refusal() -> tuple[str, str]:
        curl = await asyncio.create_subprocess_exec("curl", *base, *headers, *shown, stdout=PIPE, stderr=STDOUT)
        output, _ = await curl.communicate()
        reply, _, outcome = output.decode().rpartition("\n")
        return outcome, reply

    for _ in range(EARLY_CALLS // 4):
        for outcome, reply in await asyncio.gather(*(refusal() for _ in range(4))):
            assert outcome == f"{status} 2", reply
            assert json.loads(reply)["code"] == status


@pytest.mark.parametrize(
    ("amount", "seen"), [(b"150.00", "150.0"), (b'"150.00"', "150.0"), (b"1e300", "1e+300"), (b'"NaN"', "nan")]
)
async def test_an_odd_amount_reaches_the_service_which_refuses_it(
    client: httpx.AsyncClient, services: ScriptedServices, amount: bytes, seen: str
) -> None:
    reply = await client.post(CONSUME, content=b'{"amount":' + amount + b"}", headers=JSON)
    assert str(seen_by(services, reply.headers["x-request-id"]).request.amount) == seen


async def test_a_body_just_under_the_limit_arrives(client: httpx.AsyncClient, services: ScriptedServices) -> None:
    codes = [{"code": "C" * 30, "user_id": "9007199254740991"} for _ in range(1_000)]
    reply = await client.post("/api/v1/batches/1/codes:import", json={"request_id": "r", "codes": codes})
    assert reply.status_code == 200, reply.text
    assert len(seen_by(services, reply.headers["x-request-id"]).request.codes) == 1_000


async def test_a_large_reply_arrives_whole(client: httpx.AsyncClient) -> None:
    reply = await client.get("/api/v1/users/42/coupons", params={"page_size": 5_000})
    assert len(reply.json()["data"]["coupons"]) == 5_000


async def test_a_refused_body_never_reaches_the_service(client: httpx.AsyncClient, services: ScriptedServices) -> None:
    before = len(services.seen)
    for body in (b"", b'{"amount":1,"colour":"red"}', b'{"coupon_code":"\xff"}', b'{"coupon_code":5}'):
        assert (await client.post(CONSUME, content=body, headers=JSON)).status_code == 400
    assert len(services.seen) == before


async def test_what_a_service_sees_comes_from_the_edge_and_not_from_the_caller(
    client: httpx.AsyncClient, services: ScriptedServices, edge: Edge
) -> None:
    forged = {
        "x-jwt-payload": "eyJyb2xlcyI6WyJvcGVyYXRvciJdfQ",
        "X-Jwt-Anything": "1",
        "x-mesh-service": "risk_svc",
        "x_mesh_service": "risk_svc",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-request-id": "mine",
        "x-forwarded-for": "203.0.113.9",
        "idempotency-key": "k-1",
    }
    reply = await client.post(CONSUME, content=GIVEN, headers={**JSON, **forged})
    assert reply.status_code == 200
    metadata = seen_by(services, reply.headers["x-request-id"]).metadata
    claims = jwt.decode(f"e30.{metadata['x-jwt-payload']}.", options={"verify_signature": False})
    assert (claims["roles"], claims["merchant_id"]) == (["cashier"], "10086")
    assert not [name for name in metadata if name.startswith("x-mesh") or name == "x-jwt-anything" or "_" in name]
    assert not [name for name in metadata if name.startswith("x-envoy-retry") or "timeout" in name]
    assert "authorization" not in metadata
    assert metadata["idempotency-key"] == "k-1"
    assert metadata["x-request-id"] != "mine"
    assert metadata["traceparent"].startswith(f"00-{metadata['x-request-id'].replace('-', '')}-")
    # The address that Envoy saw comes last; what the caller claimed may stand before it.
    assert metadata["x-forwarded-for"].split(",")[-1].strip() != "203.0.113.9"


@pytest.mark.parametrize("selector", ["UNAVAILABLE", "BARE_UNAVAILABLE", "COUPON_BUSY", "INTERNAL"])
async def test_envoy_never_repeats_a_call_even_when_asked_to(
    client: httpx.AsyncClient, services: ScriptedServices, selector: str
) -> None:
    before = len(services.seen)
    asked = {"x-envoy-retry-on": "5xx,unavailable", "x-envoy-retry-grpc-on": "unavailable", "x-envoy-max-retries": "3"}
    await client.post(CONSUME, json={"coupon_code": selector}, headers=asked)
    assert len(services.seen) == before + 1


def signed(edge: Edge, **changes: Any) -> str:
    """A token with some claims changed, signed with the live key."""
    key_id, key = list(DevKeys(edge.mesh / "keys").live().items())[-1]
    claims = jwt.decode(edge.token(), options={"verify_signature": False}) | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": key_id})


def unacceptable_tokens(edge: Edge) -> dict[str, str]:
    claims = jwt.decode(edge.token(), options={"verify_signature": False})
    stranger = ec.generate_private_key(ec.SECP256R1())
    published = json.loads(DevKeys(edge.mesh / "keys").jwks())["keys"][0]
    return {
        "expired": signed(edge, exp=claims["iat"] - 60),
        "without expiry": signed(edge, exp=None),
        "not yet valid": signed(edge, nbf=claims["iat"] + 3600),
        "of another issuer": signed(edge, iss="someone"),
        "signed by a stranger": jwt.encode(claims, stranger, algorithm="ES256", headers={"kid": "dev-1"}),
        "unsigned": jwt.encode(claims, "", algorithm="none", headers={"kid": "dev-1"}),
        "signed with the public key as a secret": jwt.encode(
            claims, published["x"] + published["y"], algorithm="HS256", headers={"kid": "dev-1"}
        ),
    }


async def test_an_unacceptable_token_is_refused_on_rest_and_on_grpc(edge: Edge, services: ScriptedServices) -> None:
    before, denied = len(services.seen), await edge.statistic("http.edge.jwt_authn.denied")
    tokens = unacceptable_tokens(edge)
    async with edge.client() as client, edge.channel() as channel:
        cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
        for name, token in tokens.items():
            bearer = f"Bearer {token}"
            reply = await client.post(CONSUME, content=GIVEN, headers={**JSON, "authorization": bearer})
            assert (reply.status_code, reply.json()["reason"]) == (401, "UNAUTHENTICATED"), name
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cashier.Consume(
                    cashier_service_pb2.ConsumeRequest(), metadata=[("authorization", bearer)], timeout=10
                )
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, name
    assert len(services.seen) == before
    assert await edge.statistic("http.edge.jwt_authn.denied") == denied + 2 * len(tokens)


async def test_a_token_for_another_audience_is_refused_with_403(edge: Edge) -> None:
    # Envoy tells a good token for somebody else from a bad one.
    async with edge.client(headers={"authorization": f"Bearer {signed(edge, aud='something')}"}) as client:
        reply = await client.post(CONSUME, content=GIVEN, headers=JSON)
    assert (reply.status_code, reply.json()["reason"]) == (403, "PERMISSION_DENIED")


async def test_a_token_is_verified_once_and_then_remembered(edge: Edge) -> None:
    async with edge.client(headers={"authorization": f"Bearer {edge.token(ttl_s=611)}"}) as client:
        before = await edge.statistic("http.edge.jwt_authn.jwt_cache_hit")
        for _ in range(3):
            assert await consume_status(client) == 200
        assert await edge.statistic("http.edge.jwt_authn.jwt_cache_hit") == before + 2


async def test_a_remembered_token_still_expires(edge: Edge) -> None:
    # The edge allows ten seconds for clocks that differ, of which seven are gone.
    token = edge.token(ttl_s=1, now_s=int(time.time()) - 8)
    async with edge.client(headers={"authorization": f"Bearer {token}"}) as client:
        assert await consume_status(client) == 200
        async with asyncio.timeout(20):
            while await consume_status(client) == 200:
                continue
        assert await consume_status(client) == 401


async def test_two_live_keys_are_accepted_at_once(services: ScriptedServices, tmp_path: Path) -> None:
    keys = DevKeys(tmp_path / "keys")
    claims = Claims(subject="till-1", roles=("cashier",), client_id="till-1")
    old = keys.token(claims, ttl_s=600)
    keys.rotate()
    new = keys.token(claims, ttl_s=600)
    async with running_edge(tmp_path, coupon=[services.port]) as edge, edge.client() as client:
        for token in (old, new):
            reply = await client.post(CONSUME, content=GIVEN, headers={**JSON, "authorization": f"Bearer {token}"})
            assert reply.status_code == 200


async def test_a_grpc_call_over_tls_gets_the_services_reply(edge: Edge, services: ScriptedServices) -> None:
    async with edge.channel() as channel:
        cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
        request = cashier_service_pb2.ConsumeRequest(coupon_code="7XK9-B2T4", merchant_id="10086", amount=150.0)
        forged = [("x-jwt-payload", "e30"), ("x-mesh-service", "risk_svc")]
        call = cashier.Consume(request, metadata=[("authorization", f"Bearer {edge.token()}"), *forged], timeout=10)
        reply = await call
        headers = dict(await call.initial_metadata())
    assert reply.transaction_id == "TX202508110001"
    seen = seen_by(services, str(headers["x-request-id"]))
    assert seen.request == request
    assert seen.metadata["x-jwt-payload"] != "e30"
    assert "x-mesh-service" not in seen.metadata
    assert seen.metadata["traceparent"].startswith("00-")
    assert "authorization" not in seen.metadata
    assert "server" not in headers


async def test_a_grpc_error_keeps_status_details_and_trailers(edge: Edge) -> None:
    async with edge.channel() as channel:
        batches = batch_service_pb2_grpc.BatchServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await batches.GetBatch(
                batch_service_pb2.GetBatchRequest(batch_id="BELOW_MIN_AMOUNT"),
                metadata=[("authorization", f"Bearer {edge.token()}")],
                timeout=10,
            )
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "The order must be at least 100.00; it is 99.99."
    # The type stubs know an entry as an object, at run time it is a pair.
    trailers: dict[str, Any] = dict(cast("Any", refused.value.trailing_metadata()))
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.reason, info.metadata["amount"]) == ("BELOW_MIN_AMOUNT", "99.99")


async def test_a_grpc_call_that_takes_too_long_is_told_so(edge: Edge) -> None:
    async with edge.channel() as channel:
        cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cashier.Consume(
                cashier_service_pb2.ConsumeRequest(coupon_code="HANG"),
                metadata=[("authorization", f"Bearer {edge.token()}")],
                timeout=20 * ROUTE_TIMEOUT_S,
            )
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_grpc_request_larger_than_a_rest_body_may_be_is_taken(edge: Edge) -> None:
    async with edge.channel() as channel:
        coupons = coupon_service_pb2_grpc.CouponServiceStub(channel)
        request = coupon_service_pb2.ImportCodesRequest(request_id="r")
        request.codes.extend(coupon_service_pb2.ImportedCode(code="C" * 1_000) for _ in range(300))
        assert request.ByteSize() > 2 * BODY_MAX_BYTES
        metadata = [("authorization", f"Bearer {edge.token()}")]
        reply = await coupons.ImportCodes(request, metadata=metadata, timeout=10)
    assert len(reply.coupon_ids) == 300


@pytest.mark.parametrize("with_token", [True, False])
async def test_health_and_reflection_are_not_reachable_from_outside(edge: Edge, with_token: bool) -> None:
    metadata = [("authorization", f"Bearer {edge.token()}")] if with_token else []
    expected = grpc.StatusCode.UNIMPLEMENTED if with_token else grpc.StatusCode.UNAUTHENTICATED
    async with edge.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=10)
        assert refused.value.code() == expected
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in reflection.ServerReflectionInfo(asked, metadata=metadata, timeout=10):
                pass
        assert refused.value.code() == expected


async def test_the_rate_limit_of_an_address_bites_on_rest_and_on_grpc(
    services: ScriptedServices, tmp_path: Path
) -> None:
    burst = 4
    async with (
        running_edge(tmp_path, coupon=[services.port], rate_limit_per_s=1, rate_limit_burst=burst) as edge,
        edge.client(headers={"accept-language": "en"}) as client,
        edge.channel() as channel,
    ):
        replies = [await client.post(CONSUME, content=GIVEN, headers=JSON) for _ in range(3 * burst)]
        limited = replies[-1]
        assert {reply.status_code for reply in replies} == {200, 429}
        assert burst <= sum(reply.status_code == 200 for reply in replies) < 2 * burst
        envelope = limited.json()
        assert (envelope["reason"], envelope["retry_after_ms"]) == ("RATE_LIMITED", 1000)
        assert envelope["message"] == "Too many requests. Please try again later."
        assert limited.headers["retry-after"] == "1"
        cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
        metadata = [("authorization", f"Bearer {edge.token()}")]
        codes = []
        for _ in range(2 * burst):
            call = cashier.Consume(cashier_service_pb2.ConsumeRequest(), metadata=metadata, timeout=10)
            codes.append(await call.code())
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        # What is refused for another reason counts as well, so that guessing tokens or paths is limited too.
        unknown = [(await client.get("/api/v1/nothing")).status_code for _ in range(2 * burst)]
        assert 429 in unknown


async def test_each_address_has_a_bucket_of_its_own(services: ScriptedServices, tmp_path: Path) -> None:
    async with running_edge(tmp_path, coupon=[services.port], rate_limit_per_s=1, rate_limit_burst=2) as edge:

        async def burst_from(address: str) -> list[int]:
            trusted = ssl.create_default_context(cafile=str(edge.authority))
            transport = httpx.AsyncHTTPTransport(local_address=address, verify=trusted)
            headers = {"authorization": f"Bearer {edge.token()}", **JSON}
            async with httpx.AsyncClient(
                transport=transport, base_url=edge.url.replace("localhost", "127.0.0.1")
            ) as own:
                return [(await own.post(CONSUME, content=GIVEN, headers=headers)).status_code for _ in range(6)]

        first = await burst_from("127.0.0.1")
        second = await burst_from("127.0.0.2")
    assert 429 in first
    assert second[:2] == [200, 200]
    assert 429 in second


async def test_503_is_an_envelope_when_no_replica_is_there(tmp_path: Path) -> None:
    async with running_edge(tmp_path, coupon=[free_port()]) as edge:
        async with edge.client() as client:
            reply = await client.post(CONSUME, content=GIVEN, headers=JSON)
        assert (reply.status_code, reply.json()["reason"]) == (503, "UNAVAILABLE")
        assert reply.json()["retry_after_ms"] == 500
        async with edge.channel() as channel:
            cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
            metadata = [("authorization", f"Bearer {edge.token()}")]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cashier.Consume(cashier_service_pb2.ConsumeRequest(), metadata=metadata, timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_calls_are_spread_over_replicas_and_leave_one_that_went_away(tmp_path: Path) -> None:
    async with (
        scripted_services() as lasting,
        scripted_services() as leaving,
        running_edge(tmp_path, coupon=[lasting.port, leaving.port]) as edge,
        edge.client() as client,
    ):
        for _ in range(60):
            assert await consume_status(client) == 200
        assert lasting.seen
        assert leaving.seen
        await leaving.stop()
        # A health check or failed connections put the replica aside; from then on nothing fails.
        async with asyncio.timeout(15):
            while [await consume_status(client) for _ in range(20)] != [200] * 20:
                continue


async def test_a_service_that_comes_back_is_reached_within_ten_seconds(tmp_path: Path) -> None:
    port = free_port()
    async with running_edge(tmp_path, coupon=[port]) as edge, edge.client() as client:
        for _ in range(2):
            async with scripted_services(port):
                async with asyncio.timeout(10):
                    while await consume_status(client) != 200:
                        continue
            assert [await consume_status(client) for _ in range(20)] == [503] * 20


async def consume_status(client: httpx.AsyncClient) -> int:
    return (await client.post(CONSUME, content=GIVEN, headers=JSON)).status_code


async def test_old_tls_versions_and_weak_ciphers_are_refused(edge: Edge) -> None:
    def context(**limits: Any) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(edge.authority))
        for name, value in limits.items():
            setattr(made, name, value)
        return made

    async def negotiated(made: ssl.SSLContext) -> tuple[str, str]:
        _, writer = await asyncio.open_connection("localhost", edge.settings.port, ssl=made)
        chosen: ssl.SSLObject = writer.get_extra_info("ssl_object")
        cipher = chosen.cipher()
        assert cipher is not None
        found = str(chosen.version()), cipher[0]
        writer.close()
        return found

    assert (await negotiated(context()))[0] == "TLSv1.3"
    version, cipher = await negotiated(context(maximum_version=ssl.TLSVersion.TLSv1_2))
    assert version == "TLSv1.2"
    assert "GCM" in cipher or "POLY1305" in cipher
    weak = context(maximum_version=ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        await negotiated(weak)


async def test_the_administration_is_a_unix_socket_for_its_owner_alone(edge: Edge) -> None:
    socket = edge.settings.admin_socket
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


def logged(path: Path, text: str) -> str:
    """What Envoy logged, once that holds `text`; it writes its log twice a second."""
    for _ in range(400):
        if text in (found := path.read_text()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{text} was not logged")


async def test_the_log_of_accesses_holds_no_query_and_no_token(edge: Edge) -> None:
    assert edge.settings.access_log is not None
    async with edge.client() as client:
        reply = await client.get("/api/v1/users/42/coupons", params={"page_token": "personal-thing"})
        request_id = reply.headers["x-request-id"]
    text = await asyncio.to_thread(logged, edge.settings.access_log, request_id)
    assert "personal-thing" not in text
    assert edge.token()[:20] not in text


async def test_the_log_of_accesses_says_who_called_what_and_how_to_find_it(edge: Edge) -> None:
    assert edge.settings.access_log is not None
    trace = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with edge.client() as client:
        accepted = await client.get("/api/v1/users/42/coupons", headers={"idempotency-key": "key-1"})
        wrong_type = {"request_id": "body-1", "coupon_code": 5}
        refused = await client.post(CONSUME, json=wrong_type, headers={"traceparent": trace})
        early = await client.get(f"{CONSUME}?secret=1", headers={"authorization": ""})
    text = await asyncio.to_thread(logged, edge.settings.access_log, early.json()["trace_id"])
    lines = [json.loads(line) for line in text.splitlines()]
    found = {line["trace_id"]: line for line in lines}
    shown = ("client_id", "method", "path", "request_id", "status", "reason")

    def said(trace_id: str) -> tuple[Any, ...]:
        return tuple(found[trace_id][name] for name in shown)

    trace_id = accepted.headers["x-request-id"].replace("-", "")
    assert said(trace_id) == ("till-1", "GET", "/api/v1/users/42/coupons", "key-1", 200, None)
    assert refused.json()["trace_id"] == trace[3:35]
    assert said(trace[3:35]) == ("till-1", "POST", CONSUME, "body-1", 400, "MALFORMED_JSON")
    assert said(early.json()["trace_id"]) == (None, "GET", CONSUME, None, 405, "METHOD_NOT_ALLOWED")


def test_envoy_itself_takes_the_rendered_configuration(tmp_path: Path) -> None:
    settings = EdgeSettings.under(
        tmp_path, port=8443, coupon=["127.0.0.1:1", "coupon.local:2", "[::1]:3"], risk=["127.0.0.1:4"]
    )
    settings.jwks.parent.mkdir()
    settings.jwks.write_text(DevKeys(settings.jwks.parent).jwks())
    configuration = tmp_path / "envoy.yaml"
    configuration.write_text(render(settings))
    validate(ENVOY, configuration)
    configuration.write_text(render(settings).replace("jwt_authn.v3", "jwt_authn.v4"))
    with pytest.raises(ValueError, match="Envoy refuses"):
        validate(ENVOY, configuration)


def test_a_socket_path_that_no_system_takes_is_refused(tmp_path: Path) -> None:
    settings = EdgeSettings.under(tmp_path / ("x" * 100), port=8443, coupon=["127.0.0.1:1"], risk=["127.0.0.1:4"])
    with pytest.raises(ValueError, match="unix socket"):
        render(settings)


@pytest.mark.parametrize("endpoint", ["", "localhost", "127.0.0.1:", "127.0.0.1:0", ":1", "127.0.0.1:x", "h:70000"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str, tmp_path: Path) -> None:
    settings = EdgeSettings.under(tmp_path, port=8443, coupon=[endpoint], risk=["127.0.0.1:4"])
    with pytest.raises(ValueError, match="host:port"):
        render(settings)
