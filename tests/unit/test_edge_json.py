import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.lua import json_module

READER = json_module()
DEPTH_MAX = 32


def read(text: bytes) -> tuple[Any, str]:
    """What the Lua reader makes of a text, as Python values with numbers as text, and the reason for a refusal."""
    answer = READER[b"decode"](text, DEPTH_MAX)
    if isinstance(answer, tuple):
        value, refusal = answer
        assert value is None
        return None, refusal[b"reason"].decode()
    return as_python(answer), ""


def as_python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool):
        return value
    kind = value[b"kind"]
    if kind == b"null":
        return None
    if kind == b"number":
        return ("number", value[b"text"].decode())
    if kind == b"array":
        return [as_python(item) for item in value[b"items"].values()]
    return {name.decode(): as_python(value[b"fields"][name]) for name in value[b"names"].values()}


class Refused(ValueError):
    """Python's own reader takes this text, a strict one does not."""


def refuse(_: str) -> None:
    raise Refused


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Refused
    return dict(pairs)


def python_reads(text: str) -> tuple[bool, Any]:
    """Whether a strict reader takes the text, and its value with numbers as text."""
    try:
        value = json.loads(
            text,
            parse_constant=refuse,
            parse_float=lambda number: ("number", number),
            parse_int=lambda number: ("number", number),
            object_pairs_hook=unique,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False, None
    return True, value


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_every_json_value_is_read_as_python_reads_it(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(text.encode()) == (python_reads(text)[1], "")


PIECES = [*"{}[],:\\-01/'中 \t\n\x00\x7f", '"', '"a"', '"b"', "\\u", "d83d", "\\ude00", "\\n", "true", "null", "nul"]
PIECES += ["01", ".5", "1.", "e", "E+2", "1e5", "NaN"]
NEARLY_JSON = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=1_000)
@given(NEARLY_JSON)
@example('{"a":1,"a":2}')
@example('"\\ud83d\\ude00"')
@example('"\\ud83d"')
@example("[1,]")
@example("01")
@example("-")
def test_what_is_nearly_json_is_taken_exactly_when_a_strict_reader_takes_it(text: str) -> None:
    taken, value = python_reads(text)
    found, reason = read(text.encode())
    assert (not reason) == taken, (text, reason)
    if taken:
        assert found == value


@settings(max_examples=500)
@given(st.binary(max_size=12) | st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"\xc0\x80")
@example(b"\xed\xa0\x80")
@example(b"\xf4\x90\x80\x80")
@example(b"\xf0\x8f\xbf\xbf")
@example(b"\xe4\xb8")
def test_bytes_are_utf8_exactly_when_python_decodes_them(text: bytes) -> None:
    try:
        text.decode()
        expected = None
    except UnicodeDecodeError as error:
        expected = error.start + 1
    assert READER[b"invalid_utf8_at"](text) == expected


@given(st.text())
@example('"\\\x00\x1f\x7f\u2028')
def test_a_quoted_text_reads_back_as_itself(text: str) -> None:
    assert json.loads(READER[b"quote"](text.encode())) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "MALFORMED_JSON"),
        (b"\xef\xbb\xbf{}", "MALFORMED_JSON"),
        (b'{"a":1}x', "MALFORMED_JSON"),
        (b'{"a":1,"\\u0061":2}', "MALFORMED_JSON"),
        (b'{"a":NaN}', "MALFORMED_JSON"),
        (b'"\\ud800"', "INVALID_UTF8"),
        (b'"\\udc00\\ud800"', "INVALID_UTF8"),
        (b'{"a":"\xff"}', "INVALID_UTF8"),
        (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, ""),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), "MALFORMED_JSON"),
        (b"[" * 200_000, "MALFORMED_JSON"),
    ],
)
def test_a_text_that_is_no_json_is_refused_with_its_reason(text: bytes, reason: str) -> None:
    assert read(text)[1] == reason


def test_a_number_keeps_its_digits() -> None:
    assert read(b"150.00")[0] == ("number", "150.00")
    assert read(b"9007199254740993")[0] == ("number", "9007199254740993")
    assert math.isclose(float(read(b"1e300")[0][1]), 1e300)
