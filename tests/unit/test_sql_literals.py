"""How values become SQL."""

import enum
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from meshkit.sql_literals import literal, render, render_insert, render_rows


class Status(enum.IntEnum):
    USED = 2


class Scope(enum.StrEnum):
    CLAIM = "claim'"


@pytest.mark.parametrize(
    ("value", "sql"),
    [
        ("0000000000000000042", "'0000000000000000042'"),
        ("", "''"),
        ('it\'s \\ "x" \n\r\0\x1a', "'it''s \\\\ \"x\" \n\r\0\x1a'"),
        ("券😀", "'券😀'"),
        (150, "150"),
        (True, "1"),
        (None, "NULL"),
        (Decimal("12345678901234567890.10"), "12345678901234567890.10"),
        (Decimal("1E+3"), "1000"),
        (0.1, "0.1"),
        (b"", "X''"),
        (b"\x00'\\\xff", "X'00275cff'"),
        (bytearray(b"\x01"), "X'01'"),
        (datetime(2025, 8, 11, 8, tzinfo=timezone(timedelta(hours=8))), "'2025-08-11 00:00:00'"),
        (datetime(2025, 8, 11, 0, 0, 0, 1000, tzinfo=UTC), "'2025-08-11 00:00:00.001000'"),
        (date(2025, 8, 11), "'2025-08-11'"),
        (Status.USED, "2"),
        (Scope.CLAIM, "'claim'''"),
        ([1, "a"], "(1,'a')"),
        ([(63, "01"), (64, "02")], "((63,'01'),(64,'02'))"),
    ],
)
def test_a_value_has_one_sql_form(value: object, sql: str) -> None:
    assert literal(value) == sql


@pytest.mark.parametrize("value", [[], (), [()], Decimal("NaN"), float("inf"), float("nan"), datetime(2025, 8, 11)])
def test_a_value_that_has_no_true_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"can't be stored|no SQL form"):
        literal(value)


@pytest.mark.parametrize("value", [object(), {1}, {"a": 1}, 1j])
def test_a_type_that_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="has no SQL form"):
        literal(value)


def test_percent_signs_are_doubled_with_and_without_parameters() -> None:
    assert render("SELECT 'a%%'", None) == "SELECT 'a%'"
    assert render("SELECT 'a%%', %(b)s", {"b": "50%"}) == "SELECT 'a%', '50%'"
    with pytest.raises(KeyError):
        render("SELECT %(b)s", None)


@pytest.mark.parametrize("rows", [[(1, "x"), (2, "%s")], [{"b": "x", "a": 1}, {"a": 2, "b": "%s", "other": 0}]])
def test_an_insert_repeats_the_list_after_values_and_nothing_else(rows: Sequence[tuple[int, str]]) -> None:
    sql = "INSERT INTO t (a, b, c) VALUES (%(a)s, COALESCE(%(b)s, ')%%'), NOW()) ON DUPLICATE KEY UPDATE a = VALUES(a)"
    assert render_insert(sql, rows) == (
        "INSERT INTO t (a, b, c) VALUES (1, COALESCE('x', ')%'), NOW()),(2, COALESCE('%s', ')%'), NOW())"
        " ON DUPLICATE KEY UPDATE a = VALUES(a)"
    )


def test_a_rows_marker_becomes_one_select_per_row() -> None:
    sql = "UPDATE /*rows: shard, id:ascii */ d JOIN t ON t.id = d.id SET x = %(x)s"
    assert render_rows(sql, [(1, "a"), {"id": "b'", "shard": 2}], {"x": "%"}) == (
        "UPDATE (SELECT 1 AS shard, _ascii'a' COLLATE ascii_bin AS id"
        " UNION ALL SELECT 2,_ascii'b''' COLLATE ascii_bin) d JOIN t ON t.id = d.id SET x = '%'"
    )


def test_rows_of_the_wrong_width_or_none_at_all_are_refused() -> None:
    insert = "INSERT INTO t (a, b) VALUES (%(a)s, %(b)s)"
    marked = "UPDATE /*rows:a,b*/ d JOIN t SET t.a = d.a"
    wrong: list[list[tuple[int, ...]]] = [[], [(1,)], [(1, 2), (1, 2, 3)]]
    for rows in wrong:
        with pytest.raises(ValueError, match=r"no SQL form|values for"):
            render_insert(insert, rows)
        with pytest.raises(ValueError, match=r"no SQL form|values for"):
            render_rows(marked, rows)


@pytest.mark.parametrize("sql", ["UPDATE t SET a = 1", "/*rows:a*/ /*rows:b*/", "/*rows:a,*/", "/*rows:a:utf8*/"])
def test_a_statement_without_exactly_one_proper_marker_is_refused(sql: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        render_rows(sql, [(1,)])


@pytest.mark.parametrize("sql", ["INSERT INTO t SELECT 1", "INSERT INTO t VALUES (%(a)s"])
def test_an_insert_without_a_values_list_is_refused(sql: str) -> None:
    with pytest.raises(ValueError, match="VALUES list"):
        render_insert(sql, [(1,)])


@pytest.mark.parametrize("value", ["é", 5, b"a"])
def test_an_ascii_column_takes_ascii_text_only(value: object) -> None:
    with pytest.raises(TypeError, match="ASCII text only"):
        render_rows("/*rows:a:ascii*/", [(value,)])
