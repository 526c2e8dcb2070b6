import json
from typing import Any

import pytest

from meshctl.edge.contract import Contract, Route
from meshctl.edge.scripts import lua_value
from tests.harness.lua import DESCRIPTOR_SET, LoadedScript, Stream, lua_runtime

CONTRACT = Contract.load(DESCRIPTOR_SET)
FIELDS = CONTRACT.fields()
CONSUME = "couponmesh.coupon.v1.ConsumeRequest"
BODY = LoadedScript("body")
GATE = LoadedScript("gate")
ENVELOPE = LoadedScript("envelope")


def checked(body: Any, message: str = CONSUME) -> Stream:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return BODY.request(Stream(body=text), message=message)


def paths_to(message: str, seen: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every chain of field names from a message to each of its nested messages, the empty chain first."""
    chains: list[tuple[str, ...]] = [()]
    for name, (_, nested) in FIELDS[message].items():
        if nested and nested not in seen:
            chains += [(name, *rest) for rest in paths_to(nested, (*seen, nested))]
    return chains


MUTATIONS = sorted({route.request for route in CONTRACT.routes() if route.has_body})


@pytest.mark.parametrize("message", MUTATIONS)
def test_an_unknown_field_is_refused_by_name_at_every_depth_of_every_mutation(message: str) -> None:
    for chain in paths_to(message):
        body: Any = {"no_such_field": 1}
        for name in reversed(chain):
            body = {name: body}
        stream = checked(body, message)
        assert (stream.status, stream.noted.get("reason")) == ("400", "UNKNOWN_FIELD"), chain
        assert stream.noted["metadata.field"] == ".".join((*chain, "no_such_field"))


@pytest.mark.parametrize("message", MUTATIONS)
def test_every_known_field_passes_under_both_of_its_names(message: str) -> None:
    for name, (proto_name, nested) in FIELDS[message].items():
        assert checked({name: {} if nested else "x"}, message).status == ""
        assert checked({proto_name: [{}] if nested else None}, message).status == ""


def test_an_unknown_field_inside_a_list_is_refused_with_its_position() -> None:
    message = "couponmesh.coupon.v1.ImportCodesRequest"
    stream = checked({"codes": [{"code": "A"}, {"code": "B", "colour": "red"}]}, message)
    assert stream.noted["metadata.field"] == "codes[1].colour"


def test_a_field_given_under_both_of_its_names_is_refused() -> None:
    stream = checked({"coupon_code": "A", "couponCode": "B"})
    assert stream.noted["reason"] == "MALFORMED_JSON"
    assert "coupon_code" in stream.noted["metadata.problem"]


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"null", b"17", b"{", b'{"amount":1}}'])
def test_a_body_that_is_no_object_is_malformed(body: bytes) -> None:
    stream = checked(body)
    assert (stream.status, stream.noted["reason"]) == ("400", "MALFORMED_JSON")


def test_the_request_id_in_the_body_is_noted_for_the_reply() -> None:
    assert checked({"request_id": "r-1"}).noted["request_id"] == "r-1"
    assert checked({"requestId": "r-2", "nonsense": 1}).noted["request_id"] == "r-2"
    assert "request_id" not in checked({"request_id": "with space"}).noted
    assert "request_id" not in checked({"request_id": 7}).noted


def test_a_check_that_fails_ends_the_call_instead_of_letting_it_through() -> None:
    stream = checked({"a": 1}, "couponmesh.no.such.Message")
    assert (stream.status, stream.noted["reason"]) == ("500", "INTERNAL")
    assert stream.failures


def test_a_call_without_a_body_of_its_own_is_not_read() -> None:
    assert BODY.request(Stream(body=b"{"), message="").status == ""
    assert BODY.request(Stream(body=b"{")).status == ""


def example_path(route: Route) -> str:
    path = route.template
    for variable in route.variables:
        path = path.replace(f"{{{variable}}}", "0123456789012345678")
    return path


def entered(method: str, path: str, **headers: str) -> Stream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return GATE.request(Stream(headers={":method": method, ":path": path, **named}))


@pytest.mark.parametrize("route", CONTRACT.routes(), ids=lambda route: f"{route.verb} {route.template}")
def test_every_mapping_of_the_contract_is_let_in_and_no_other_verb_is(route: Route) -> None:
    path = example_path(route)
    stream = entered(route.verb, path, content_type="application/json")
    assert stream.status == ""
    assert stream.noted["message"] == (route.request if route.has_body else "")
    for verb in {"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"} - {route.verb}:
        assert entered(verb, path, content_type="application/json").status == "405"
    assert entered(route.verb, path + "x/y", content_type="application/json").status == "404"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1/",
        "/api/v1/nothing",
        "/api/v1/coupons/1%2F2",
        "/api/v1/coupons/1%5c2",
        "/api/v1/coupons/",
        "/api/v1/batches/1:nothing",
        "/couponmesh.coupon.v1.CashierService/Consume",
    ],
)
def test_a_path_outside_the_contract_is_not_found(path: str) -> None:
    assert entered("POST", path, content_type="application/json").status == "404"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", ""),
        ("application/json; charset=utf-8", ""),
        ('Application/JSON;charset="UTF-8"', ""),
        ("application/json; charset=gbk", "415"),
        ("application/x-www-form-urlencoded", "415"),
        ("application/jsonp", "415"),
        ("text/plain", "415"),
        ("application/grpc", "415"),
        ("application/grpcfoo", "415"),
        ("", "415"),
    ],
)
def test_a_mutation_is_taken_as_json_only(content_type: str, status: str) -> None:
    assert entered("POST", "/api/v1/coupon/consume", content_type=content_type).status == status


def test_a_compressed_body_is_refused() -> None:
    stream = entered("POST", "/api/v1/coupon/consume", content_type="application/json", content_encoding="gzip")
    assert stream.status == "415"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/v1/users/42/coupons?page_size=2&status=COUPON_STATUS_USED", None),
        ("/api/v1/users/42/coupons?pageSize=2", None),
        ("/api/v1/users/42/coupons?colour=red", "colour"),
        ("/api/v1/users/42/coupons?page_size=2&%63olour=red", "colour"),
        ("/api/v1/users/42/coupons?user_id=43", "user_id"),
        ("/api/v1/users/42/coupons?userId=43", "userId"),
        ("/api/v1/transactions:lookup?merchant_order.merchant_id=1&merchantOrder.orderId=2", None),
        ("/api/v1/transactions:lookup?merchant_order.colour=1", "merchant_order.colour"),
        ("/api/v1/transactions:lookup?" + "&".join(["request_id=1"] * 65), "request_id"),
    ],
)
def test_a_query_parameter_must_be_a_field_that_the_path_does_not_give(path: str, field: str | None) -> None:
    stream = entered("GET", path)
    assert (stream.status, stream.noted.get("metadata.field")) == (("400", field) if field else ("", None))


def test_a_mutation_takes_no_query_parameters() -> None:
    stream = entered("POST", "/api/v1/coupon/consume?amount=1", content_type="application/json")
    assert (stream.status, stream.noted["reason"]) == ("400", "UNKNOWN_FIELD")


@pytest.mark.parametrize("path", ["/api/v1/coupons/%ff", "/api/v1/users/42/coupons?page_token=%e4%b8"])
def test_a_path_or_query_that_is_not_utf8_is_refused(path: str) -> None:
    stream = entered("GET", path)
    assert (stream.status, stream.noted["reason"]) == ("400", "INVALID_UTF8")


@pytest.mark.parametrize(("key", "status"), [("k" * 64, ""), ("k" * 65, "400"), ("a b", "400"), ("ключ", "400")])
def test_an_idempotency_key_is_1_to_64_visible_ascii_characters(key: str, status: str) -> None:
    stream = entered("POST", "/api/v1/coupon/consume", content_type="application/json", idempotency_key=key)
    assert stream.status == status


def test_native_grpc_passes_the_gate_unread() -> None:
    stream = entered("POST", "/couponmesh.coupon.v1.CashierService/Consume", content_type="application/grpc+proto")
    assert (stream.status, stream.noted) == ("", {})


def arrived(**headers: str) -> Stream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    fixed = {":method": "GET", ":path": "/api/v1/coupons/1", "x-request-id": "0adbf0d3-8dfd-452f-a80a-1d6aa2ab06e2"}
    return ENVELOPE.request(Stream(headers={**fixed, **named}))


@pytest.mark.parametrize(
    ("accept_language", "language"),
    [
        ("", "zh-CN"),
        ("en", "en"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("en;q=0.3, zh;q=0.4", "zh-CN"),
        ("de, en;q=0.1", "en"),
        ("en;q=0", "zh-CN"),
        ("fr", "zh-CN"),
        ("*", "zh-CN"),
        (";;,,q=", "zh-CN"),
        ("en;q=.", "zh-CN"),
    ],
)
def test_english_is_spoken_only_to_who_prefers_it(accept_language: str, language: str) -> None:
    assert arrived(accept_language=accept_language).noted["language"] == language


OWN_TRACE = "00-0adbf0d38dfd452fa80a1d6aa2ab06e2-0adbf0d38dfd452f-00"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", False),
        ('00-"},{"-00f067aa0ba902b7-01', False),
        ("", False),
    ],
)
def test_a_callers_trace_goes_on_when_well_formed_and_one_begins_otherwise(given: str, kept: bool) -> None:
    stream = arrived(traceparent=given, tracestate="vendor=1")
    assert stream.headers["traceparent"] == (given if kept else OWN_TRACE)
    assert stream.noted["trace_id"] == stream.headers["traceparent"][3:35]
    assert ("tracestate" in stream.headers) == kept


def test_a_hostile_request_id_stays_out_of_the_reply() -> None:
    stream = ENVELOPE.reply(
        Stream(headers={":status": "401"}, body=b"Jwt is missing"), method="GET", edge_request_id='a","code":200,"b":"'
    )
    assert json.loads(stream.body)["code"] == 401
    assert json.loads(stream.body)["request_id"] == 'a","code":200,"b":"'


def test_a_reply_to_head_keeps_having_no_body() -> None:
    stream = ENVELOPE.reply(Stream(headers={":status": "405"}), method="HEAD")
    assert stream.body == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"code":14}',
        b'{"code":[],"details":[1,"x",null,{},{"@type":{}}]}',
        b'{"details":7}',
        b'{"details":true}',
        b'{"details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","domain":"couponmesh","reason":7}]}',
        b'{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retry_delay":"..s"}]}',
        b"{",
        b"\xff",
        b"[]",
    ],
)
@pytest.mark.parametrize("status", ["400", "404", "418", "431", "500", "503"])
def test_whatever_stands_behind_an_error_the_reply_is_an_envelope(body: bytes, status: str) -> None:
    stream = ENVELOPE.reply(
        Stream(headers={":status": status, "content-type": "application/json"}, body=body), method="GET"
    )
    reply = json.loads(stream.body)
    assert reply["code"] == int(status)
    assert reply["data"]["details"][0]["reason"] == reply["reason"]
    assert reply["message"]
    assert "?" not in reply["message"]
    assert stream.headers["content-length"] == str(len(stream.body))


@pytest.mark.parametrize(
    ("grpc_status", "status", "reason"),
    [("14", 503, "UNAVAILABLE"), ("4", 504, "DEADLINE_EXCEEDED"), ("13", 500, "INTERNAL"), ("what", 500, "INTERNAL")],
)
def test_a_stream_that_broke_off_is_an_error_and_says_nothing_of_what_came_before(
    grpc_status: str, status: int, reason: str
) -> None:
    stream = Stream(headers={":status": "200"}, body=b'[{"complete":true}]', trailers={"grpc-status": grpc_status})
    reply = json.loads(ENVELOPE.reply(stream, method="GET").body)
    assert (stream.headers[":status"], reply["code"], reply["reason"]) == (str(status), status, reason)
    assert b"complete" not in stream.body


@pytest.mark.parametrize("trailers", [{}, {"grpc-status": "0"}], ids=["without trailers", "with OK"])
def test_a_stream_that_came_to_its_end_is_an_array(trailers: dict[str, str]) -> None:
    stream = Stream(headers={":status": "200"}, body=b'[{"complete":true}]', trailers=trailers)
    assert json.loads(ENVELOPE.reply(stream, method="GET").body) == {"code": 200, "data": [{"complete": True}]}


def test_every_reason_of_the_edge_has_both_messages_from_the_contract() -> None:
    for name, reason in CONTRACT.reasons().items():
        for language, template in (("en", reason.en), ("zh-CN", reason.zh)):
            stream = ENVELOPE.reply(Stream(headers={":status": "400"}), method="POST", reason=name, language=language)
            message = json.loads(stream.body)["message"]
            assert message.split("?")[0] == template.split("{")[0]


@pytest.mark.parametrize(
    ("transcoder", "plain"),
    [
        (b"coupon_code: invalid value 5 for type TYPE_STRING", "coupon_code: 5 is not a text"),
        (b'n: invalid value "x" for type TYPE_INT64', 'n: "x" is not a whole number in range'),
        (b'client: invalid value "x" for type type.googleapis.com/couponmesh.type.v1.ClientContext',
         'client: "x" is not an object'),
        (b"a.b: invalid value Starting an object on a scalar field for type c",
         "a.b.c: an object stands where one value belongs"),
        (b": Proto field is not repeating, cannot start list.", "a list stands where one value belongs"),
        (b"Number exceeds the range of double.\n{1e999}\n ^", "a number is out of range"),
        (b"something new of type.googleapis.com", "a value does not fit its field"),
    ],
)  # fmt: skip
def test_what_the_transcoder_says_is_put_into_plain_words(transcoder: bytes, plain: str) -> None:
    stream = ENVELOPE.reply(Stream(headers={":status": "400"}, body=transcoder), method="POST", message=CONSUME)
    reply = json.loads(stream.body)
    assert reply["data"]["details"][0]["metadata"] == {"problem": plain}
    assert reply["message"] == f"请求体不是合法的 JSON：{plain}。"


@pytest.mark.parametrize(
    "value",
    ["", 'quote " backslash \\', "line\nbreak\r", "优惠券", "]]", True, False, None, 17, -1.5, [1, "a"], {"a b": 1}],
)
def test_a_value_written_as_lua_reads_back_as_itself(value: Any) -> None:
    found = lua_runtime().eval(lua_value(value).encode())
    if isinstance(value, str):
        assert found == value.encode()
    elif isinstance(value, list):
        assert list(found.values()) == [1, b"a"]
    elif isinstance(value, dict):
        assert dict(found.items()) == {b"a b": 1}
    else:
        assert found == value


def test_a_key_may_be_a_word_of_lua() -> None:
    assert lua_runtime().eval(lua_value({"end": 17}).encode())[b"end"] == 17


def test_a_value_without_lua_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no Lua form"):
        lua_value(object())
