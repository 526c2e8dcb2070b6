"""Says which database holds which of the 128 logical shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

SHARD_COUNT = 128
_FORMAT_VERSION = 1
_DEFAULT_PORT = 3306


class ShardMapError(ValueError):
    """A shard map or a DSN that cannot be used; the message never holds a password."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """Where a database is and how to log in, parsed from `mysql://user:password@host:port/database`.

    Attributes:
        host: Host name or address; "localhost" when a unix socket is used.
        port: TCP port; not used with a unix socket.
        user: Account name.
        password: Kept out of repr and of `name`.
        database: Schema name.
        unix_socket: Path of the socket, or "" for TCP; given as `?unix_socket=/path`.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    unix_socket: str = ""

    @property
    def name(self) -> str:
        """The address without account and password, for logs and metrics."""
        return f"{self.unix_socket or f'{self.host}:{self.port}'}/{self.database}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a DSN; percent-escapes in user, password and database are decoded.

        Raises:
            ShardMapError: It is not a `mysql://` URL with user and database, or has an unknown option.
        """
        try:
            url = urlsplit(text)
            port = url.port or _DEFAULT_PORT
        except ValueError as error:
            # The parser's message could hold a part of the password, so neither it nor the text is repeated.
            del error
            raise ShardMapError("a DSN has a malformed host or port") from None
        database = unquote(url.path.removeprefix("/"))
        options = parse_qs(url.query, keep_blank_values=True)
        if url.scheme != "mysql" or not url.username or not database or "/" in database:
            raise ShardMapError("a DSN must look like mysql://user:password@host:port/database")
        unknown = sorted(set(options) - {"unix_socket"})
        if unknown:
            raise ShardMapError(f"the DSN of database {database!r} has unknown options {unknown}")
        return cls(
            host=url.hostname or "localhost",
            port=port,
            user=unquote(url.username),
            password=unquote(url.password or ""),
            database=database,
            unix_socket=options.get("unix_socket", [""])[0],
        )


@dataclass(frozen=True, slots=True)
class ShardRange:
    """Shards `first` to `last`, both included, and the DSN of the database that holds them."""

    first: int
    last: int
    dsn: str = field(repr=False)

    @property
    def shards(self) -> range:
        """The shard numbers of the range."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True)
class ShardMap:
    """All 128 shards, each in exactly one range; ranges are in ascending order."""

    ranges: tuple[ShardRange, ...]

    def __post_init__(self) -> None:
        expected = 0
        for entry in self.ranges:
            if entry.first != expected:
                kind = "overlap" if entry.first < expected else "leave a gap"
                raise ShardMapError(f"the ranges {kind} at shard {min(entry.first, expected)}")
            if entry.last < entry.first:
                raise ShardMapError(f"the range from shard {entry.first} to {entry.last} is empty")
            Dsn.parse(entry.dsn)
            expected = entry.last + 1
        if expected != SHARD_COUNT:
            raise ShardMapError(f"the ranges end at shard {expected - 1}, not at {SHARD_COUNT - 1}")

    @classmethod
    def of(cls, ranges: Sequence[ShardRange]) -> Self:
        """Builds a map from ranges in any order."""
        return cls(tuple(sorted(ranges, key=lambda entry: entry.first)))

    @classmethod
    def parse(cls, json_text: str) -> Self:
        """Parses `{"version": 1, "ranges": [{"from": 0, "to": 63, "dsn": "mysql://…"}, …]}`.

        Raises:
            ShardMapError: The JSON is malformed, of another version, or the ranges have gaps or overlap.
        """
        try:
            document: Any = json.loads(json_text)
        except ValueError as error:
            raise ShardMapError(f"the shard map is not JSON: {error}") from error
        if not isinstance(document, dict) or document.get("version") != _FORMAT_VERSION:
            raise ShardMapError(f"the shard map is not of version {_FORMAT_VERSION}")
        entries = document.get("ranges")
        if not isinstance(entries, list):
            raise ShardMapError("the shard map has no list of ranges")
        return cls.of([_parse_range(entry) for entry in entries])

    def to_json(self) -> str:
        """The text that `parse` reads; it holds passwords and belongs in no log."""
        ranges = [{"from": entry.first, "to": entry.last, "dsn": entry.dsn} for entry in self.ranges]
        return json.dumps({"version": _FORMAT_VERSION, "ranges": ranges})


def _parse_range(entry: object) -> ShardRange:
    match entry:
        case {"from": int(first), "to": int(last), "dsn": str(dsn), **unknown} if not unknown:
            return ShardRange(first, last, dsn)
    raise ShardMapError('each range wants exactly "from" and "to" (integers) and "dsn" (text)')
