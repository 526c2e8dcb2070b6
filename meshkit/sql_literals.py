"""Writes Python values as SQL literals and puts them into statements."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

Params: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any] | Sequence[Any]

_ROWS_MARKER = re.compile(r"/\*rows:(?P<columns>[a-z0-9_:,\s]+)\*/")
_VALUES = re.compile(r"\bVALUES\s*(?=\()", re.IGNORECASE)
_PARAMETER = re.compile(r"%\(([a-z][a-z0-9_]*)\)s|%%")


def _text(value: str) -> str:
    # Inside '…' only these two mean anything to the server (without NO_BACKSLASH_ESCAPES, which each session asserts).
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if "'" in value:
        value = value.replace("'", "''")
    return f"'{value}'"


def _ascii_text(value: object) -> str:
    # With its collation spelled out, the literal compares with an ascii_bin column by that column's index.
    if not isinstance(value, str) or not value.isascii():
        raise TypeError("an :ascii column takes ASCII text only")
    return f"_ascii{_text(value)} COLLATE ascii_bin"


def _real(value: float) -> str:
    if value - value != 0:
        raise ValueError("an infinite or undefined number can't be stored")
    return repr(value)


def _decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueError("an infinite or undefined number can't be stored")
    return format(value, "f")


def _time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time without zone can't be stored: times are UTC")
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    # Without the "+00:00" at the end; the fraction is left out when it is zero, which MySQL accepts as well.
    return f"'{str(value)[:-6]}'"


def _list(values: Sequence[Any]) -> str:
    if not values:
        raise ValueError("an empty list has no SQL form: ask nothing instead")
    return f"({','.join(map(literal, values))})"


def _subclass(value: object) -> str:
    # Enumerations and named tuples are subclasses of what they stand for.
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, bytearray | memoryview):
        return f"X'{value.hex()}'"
    if isinstance(value, tuple):
        return _list(value)
    raise TypeError(f"{type(value).__name__} has no SQL form")


class _Writers(dict[type, Callable[[Any], str]]):
    def __missing__(self, _: type) -> Callable[[Any], str]:
        return _subclass


_WRITERS = _Writers(
    {
        str: _text,
        int: int.__repr__,
        bool: lambda value: "1" if value else "0",
        bytes: lambda value: f"X'{value.hex()}'",
        type(None): lambda _: "NULL",
        Decimal: _decimal,
        datetime: _time,
        date: lambda value: f"'{value.isoformat()}'",
        float: _real,
        tuple: _list,
        list: _list,
    }
)


def literal(value: object) -> str:
    """One value as a SQL literal.

    Text is always quoted (an unquoted number compared with a text column scans the whole table), bytes become X'…',
    times must carry a zone and are written in UTC, tuples and lists become "(…)" for IN, nested ones row constructors.

    Raises:
        TypeError: The type has no SQL form.
        ValueError: A number isn't finite, a time has no zone, a list is empty.
    """
    return _WRITERS[type(value)](value)


def render(sql: str, params: Params | None) -> str:
    """Puts the parameters' literals in the place of `%(name)s`, and "%" in the place of "%%".

    Raises:
        KeyError: A parameter is missing.
    """
    return sql % {name: _WRITERS[type(value)](value) for name, value in params.items()} if params else sql % {}


@dataclass(frozen=True, slots=True)
class _RowsTemplate:
    """A statement cut where its rows go: `prefix`, then `first`, then `rest` per further row, then `suffix`."""

    prefix: str
    first: str
    rest: str
    separator: str
    suffix: str
    names: tuple[str, ...]
    ascii_columns: tuple[int, ...] = ()

    def render(self, rows: Sequence[Row], params: Params | None) -> str:
        if not rows:
            raise ValueError("a statement for no rows has no SQL form: send nothing instead")
        rest = self.rest
        written = [rest % self._values(row) for row in rows]
        written[0] = self.first % self._values(rows[0])
        return f"{render(self.prefix, params)}{self.separator.join(written)}{render(self.suffix, params)}"

    def _values(self, row: Row) -> tuple[str, ...]:
        values = row if isinstance(row, tuple | list) else self._in_order(row)
        if len(values) != len(self.names):
            raise ValueError(f"a row has {len(values)} values for {len(self.names)} columns")
        written = [_WRITERS[type(value)](value) for value in values]
        for column in self.ascii_columns:
            written[column] = _ascii_text(values[column])
        return tuple(written)

    def _in_order(self, row: Row) -> Sequence[Any]:
        return [row[name] for name in self.names] if isinstance(row, Mapping) else row


def render_insert(sql: str, rows: Sequence[Row]) -> str:
    """One INSERT for all rows: the parenthesised list after VALUES is repeated.

    Args:
        sql: `INSERT INTO t (a, b) VALUES (%(a)s, %(b)s)`, with anything after the list (ON DUPLICATE KEY UPDATE …).
        rows: Mappings by parameter name, or sequences in the order of the parameters in the list.

    Raises:
        ValueError: There are no rows, or a row has too many or too few values.
    """
    return _insert_template(sql).render(rows, None)


def render_rows(sql: str, rows: Sequence[Row], params: Params | None = None) -> str:
    """A statement whose marker `/*rows:a,b,…*/` becomes a derived table with one SELECT per row.

    `UPDATE /*rows:shard,coupon_id:ascii,amount*/ d STRAIGHT_JOIN t ON t.shard = d.shard AND … SET …` updates many
    rows by different values in one statement. A column that is compared with an ascii_bin column is marked `:ascii`;
    without it, it is up to the server whether the comparison converts the literal or the table's column, which then
    uses no index.

    Args:
        sql: A statement with exactly one marker.
        rows: Mappings by column name, or sequences in the marker's order.
        params: Values of `%(name)s` parameters outside the marker.

    Raises:
        ValueError: There are no rows, a row has too many or too few values, or the marker is missing.
    """
    return _rows_template(sql).render(rows, params)


@lru_cache(maxsize=1024)
def _insert_template(sql: str) -> _RowsTemplate:
    match = _VALUES.search(sql)
    if match is None:
        raise ValueError("the statement has no VALUES list")
    start, end = match.end(), _closing(sql, match.end())
    names: list[str] = []

    def positional(parameter: re.Match[str]) -> str:
        if parameter[1] is None:
            return "%%"
        names.append(parameter[1])
        return "%s"

    row = _PARAMETER.sub(positional, sql[start:end])
    return _RowsTemplate(sql[:start], row, row, ",", sql[end:], tuple(names))


@lru_cache(maxsize=1024)
def _rows_template(sql: str) -> _RowsTemplate:
    markers = list(_ROWS_MARKER.finditer(sql))
    if len(markers) != 1:
        raise ValueError("the statement wants exactly one /*rows:…*/ marker")
    marker = markers[0]
    names: list[str] = []
    ascii_columns: list[int] = []
    for column in marker["columns"].split(","):
        name, _, kind = column.strip().partition(":")
        if not name or kind not in {"", "ascii"}:
            raise ValueError(f"{column.strip()!r} is no column of a /*rows:…*/ marker")
        if kind:
            ascii_columns.append(len(names))
        names.append(name)
    first = f"SELECT {', '.join(f'%s AS {name}' for name in names)}"
    rest = f"SELECT {','.join(['%s'] * len(names))}"
    prefix, suffix = sql[: marker.start()] + "(", ")" + sql[marker.end() :]
    return _RowsTemplate(prefix, first, rest, " UNION ALL ", suffix, tuple(names), tuple(ascii_columns))


def _closing(sql: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    quote = ""
    for index in range(start, len(sql)):
        character = sql[index]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return index + 1
    raise ValueError("the VALUES list isn't closed")
