"""One connection to a MySQL or MariaDB server: opening it, proving its session settings, running one statement."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

import aiomysql
import pymysql.converters
import pymysql.err
from aiomysql.connection import Connection
from pymysql.constants import CLIENT, CR, FIELD_TYPE

from meshkit.mysql_errors import (
    DatabaseTimeout,
    DatabaseUnavailable,
    StatementRefused,
    is_server_answer,
    translate,
)
from meshkit.shard_map import Dsn
from meshkit.sql_literals import render


def _utc(text: str) -> datetime:
    # The server's form is ISO 8601's but for the zone, which every session has proved to be UTC.
    return datetime.fromisoformat(f"{text}+00:00")


_DECODERS = {
    **pymysql.converters.decoders,
    FIELD_TYPE.DATETIME: _utc,
    FIELD_TYPE.TIMESTAMP: _utc,
}


# The server hangs up on a packet that reaches max_allowed_packet, its own framing included.
_PACKET_MARGIN_BYTES = 64


class SessionRefused(DatabaseUnavailable):
    """The server doesn't hold what a session must have (isolation, strict mode, UTC, …); the message lists it all."""


class _Statements(aiomysql.Cursor):  # type: ignore[misc]  # aiomysql ships no types
    """A cursor that runs finished statements and spends no round trip on warnings (strict mode makes them errors)."""

    async def run(self, statement: bytes) -> None:
        await self._query(statement)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        return list(self._rows or ())

    async def _show_warnings(self, conn: Connection) -> None:
        return


class MysqlConnection(Connection):  # type: ignore[misc]  # as above
    """A connection that a pool may keep only while `is_usable`; see `open` for how it comes about."""

    def __init__(self, dsn: Dsn) -> None:
        super().__init__(
            host=dsn.host,
            port=dsn.port,
            user=dsn.user,
            password=dsn.password,
            db=dsn.database,
            unix_socket=dsn.unix_socket or None,
            charset="utf8mb4",
            conv=_DECODERS,
            client_flag=CLIENT.FOUND_ROWS,
            autocommit=True,
        )
        # A literal that was written wrongly must not be able to smuggle in a second statement.
        self.client_flag &= ~CLIENT.MULTI_STATEMENTS
        self.name = dsn.name
        self.max_statement_bytes = 0
        self.is_reused = False
        self._statements = _Statements(self)
        self._in_step = True

    @classmethod
    async def open(cls, dsn: Dsn, queries: Mapping[str, str], *, lock_wait_s: int, timeout_s: float) -> Self:
        """Connects, sets the session up, and proves that the server took it.

        Args:
            dsn: Where to connect to.
            queries: The statements of meshkit's sql/session.sql.
            lock_wait_s: How long a statement may wait for a row lock.
            timeout_s: Limit for all of it.

        Raises:
            DatabaseUnavailable: The server can't be reached or refused the login.
            SessionRefused: The server doesn't comply.
        """
        connection = cls(dsn)
        try:
            async with asyncio.timeout(timeout_s):
                await connection.establish(queries, lock_wait_s)
        except TimeoutError as error:
            connection.close()
            raise DatabaseTimeout(f"{dsn.name}: no connection within {timeout_s:.3f} s") from error
        except SessionRefused:
            connection.close()
            raise
        except (pymysql.err.MySQLError, OSError, AssertionError, RuntimeError, ValueError) as error:
            connection.close()
            reason = translate(error, dsn.name)
            raise DatabaseUnavailable(str(reason), code=reason.code) from error
        except BaseException:
            connection.close()
            raise
        return connection

    async def establish(self, queries: Mapping[str, str], lock_wait_s: int) -> None:
        """Logs in and sets the session up; `open` adds the deadline and closes what failed."""
        await self._connect()
        await self.run(queries["set_isolation"])
        await self.run(render(queries["set_modes"], {"lock_wait_s": lock_wait_s}))
        await self.run(queries["session_variables"])
        variables = {str(name): str(value) for name, value in self.rows}
        problems = session_problems(variables)
        if problems:
            raise SessionRefused(f"{self.name}: the server's session is unfit: {'; '.join(problems)}")
        self.max_statement_bytes = int(variables["max_allowed_packet"]) - _PACKET_MARGIN_BYTES

    async def run(self, sql: str) -> int:
        """Runs one finished statement and leaves what it returned in `rows`.

        Returns:
            The number of affected rows (matched ones for UPDATE), or of returned rows.

        Raises:
            StatementRefused: The statement is longer than the server accepts; it was not sent.
            pymysql.err.MySQLError: Whatever the driver raised.
        """
        statement = sql.encode()
        if 0 < self.max_statement_bytes < len(statement):
            raise StatementRefused(f"{self.name}: a statement of {len(statement)} bytes exceeds max_allowed_packet")
        if not self.is_alive:
            # uvloop raises a RuntimeError for a write to a closed transport, which would look like a defect.
            raise pymysql.err.OperationalError(CR.CR_SERVER_GONE_ERROR, "the server has hung up")
        self._in_step = False
        try:
            await self._statements.run(statement)
        except pymysql.err.MySQLError as error:
            self._in_step = is_server_answer(error)
            raise
        self._in_step = True
        return int(self.affected_rows())

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows of the last statement; empty when it returned none."""
        return self._statements.rows

    @property
    def is_alive(self) -> bool:
        """Whether the last exchange ended in step and the server hasn't hung up since."""
        if self.closed or not self._in_step:
            return False
        reader = self._reader
        return not (reader.at_eof() or reader.eof_received or reader.exception())

    @property
    def is_poolable(self) -> bool:
        """Whether another user may have the connection: it is alive and in no transaction."""
        return self.is_alive and not self.get_transaction_status()


def session_problems(variables: Mapping[str, str]) -> list[str]:
    """What is wrong with a session's variables; empty when it has all that couponmesh relies on."""
    modes = frozenset(variables.get("sql_mode", "").split(","))
    # MySQL has the first name, MariaDB before 11.1 the second.
    isolation = variables.get("transaction_isolation", variables.get("tx_isolation"))
    problems = []
    if isolation != "READ-COMMITTED":
        problems.append(f"isolation is {isolation}, not READ-COMMITTED")
    if "STRICT_ALL_TABLES" not in modes:
        problems.append("sql_mode isn't strict (STRICT_ALL_TABLES is missing)")
    if "NO_BACKSLASH_ESCAPES" in modes:
        problems.append("sql_mode has NO_BACKSLASH_ESCAPES, which changes how text is quoted")
    if variables.get("time_zone") != "+00:00":
        problems.append(f"time_zone is {variables.get('time_zone')}, not +00:00")
    if variables.get("autocommit") != "ON":
        problems.append("autocommit is off outside transactions")
    if variables.get("log_bin") == "ON" and variables.get("binlog_format", "ROW") != "ROW":
        problems.append(f"binlog_format is {variables.get('binlog_format')}, not ROW")
    return problems
