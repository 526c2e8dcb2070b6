"""How the lines of an import are read, and what is wrong with one by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.app.import_job import pack_lines, unpack_lines
from coupon_svc.app.line_check import LinesRefused
from coupon_svc.domain.import_lines import ImportLine, LineError, csv_lines, problem_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("code\n", []),
        ("code,user_id\nABCDEF,7\n", [("ABCDEF", "7")]),
        ("\ufeffCODE, USER_ID\r\nABCDEF,7\r\nGHIJKL\r\n", [("ABCDEF", "7"), ("GHIJKL", "")]),
        ("ABCDEF\n\n  \nGHIJKL,\n", [("ABCDEF", ""), ("GHIJKL", "")]),
        (" ABCDEF , 7 \ncode\n", [("ABCDEF", "7"), ("code", "")]),
        ("ABCDEF,7,8", [("ABCDEF", "7,8")]),
    ],
)
def test_a_file_is_read_line_by_line_after_its_header(text: str, lines: list[tuple[str, str]]) -> None:
    assert [(line.code, line.user) for line in csv_lines(text)] == lines


@pytest.mark.parametrize("code", ["ABCDEF", "a-b-c-d", "1" * 32, "7XK9-B2T4"])
@pytest.mark.parametrize("user", ["", "1", "9223372036854775807"])
def test_a_line_that_is_right_has_no_problem(code: str, user: str) -> None:
    line = ImportLine(code, user)
    assert problem_of(1, line) is None
    assert line.user_id == int(user or 0)


@pytest.mark.parametrize("code", ["", "ABCDE", "A" * 33, "-ABCDEF", "ABCDEF-", "ABC DEF", "ABC_DEF", "券码券码券码"])
def test_a_line_without_a_code_is_refused_and_the_code_is_not_repeated(code: str) -> None:
    error = problem_of(7, ImportLine(code))
    assert error is not None
    assert (error.line, error.field, error.reason) == (7, "code", "VALIDATION_FAILED")
    assert not code or code not in error.problem


@pytest.mark.parametrize("user", ["0", "-1", "x", "1.0", "7,8", "9223372036854775808", "٣"])
def test_a_line_with_a_user_that_is_none_is_refused(user: str) -> None:
    error = problem_of(7, ImportLine("ABCDEF", user))
    assert error is not None
    assert (error.field, error.reason) == ("user_id", "VALIDATION_FAILED")


@given(st.lists(st.builds(ImportLine, st.text(), st.text())))
def test_lines_are_stored_and_read_as_they_were(lines: list[ImportLine]) -> None:
    assert unpack_lines(pack_lines(lines)) == lines


def test_refused_lines_tell_the_reason_of_the_first_and_the_place_of_all() -> None:
    refused = LinesRefused(
        [LineError(3, "code", "CODE_DUPLICATED", "the same"), LineError(9, "user_id", "ACCOUNT_FROZEN", "frozen")], 12
    )
    assert refused.reason == str(refused) == "CODE_DUPLICATED"
    assert refused.metadata == {"line": "3", "wrong_lines": "12"}
    assert tuple((each.field, each.problem) for each in refused.violations) == (
        ("codes[2].code", "CODE_DUPLICATED: the same"),
        ("codes[8].user_id", "ACCOUNT_FROZEN: frozen"),
    )
