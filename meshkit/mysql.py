"""Transactions on the databases of a shard map."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import pymysql.err

from meshkit.mysql_connection import MysqlConnection, SessionRefused
from meshkit.mysql_errors import (
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseTimeout,
    DatabaseUnavailable,
    Deadlock,
    DuplicateKey,
    StatementRefused,
    is_server_answer,
    translate,
)
from meshkit.mysql_pool import ConnectionPool, PoolSettings
from meshkit.queries import load_queries
from meshkit.shard_map import SHARD_COUNT, Dsn, ShardMap, ShardMapError, ShardRange
from meshkit.sql_literals import Params, Row, render, render_insert, render_rows

__all__ = [
    "SHARD_COUNT",
    "CommitOutcomeUnknown",
    "Database",
    "DatabaseError",
    "DatabaseTimeout",
    "DatabaseUnavailable",
    "Databases",
    "Deadlock",
    "DuplicateKey",
    "PoolSettings",
    "SessionRefused",
    "ShardMap",
    "ShardMapError",
    "ShardRange",
    "StatementRefused",
    "Transaction",
]

# A COMMIT that was sent is waited for at least this long, whatever is left of the transaction's time: an unknown
# outcome costs more than the wait.
_COMMIT_TIMEOUT_S = 2.0
_ROLLBACK_TIMEOUT_S = 1.0


class Transaction:
    """Statements on one connection, one at a time, all within one deadline.

    SQL comes from .sql files with `%(name)s` parameters; see `meshkit.sql_literals` for the values that fit.
    """

    __slots__ = ("_connection", "_deadline", "_loop", "_running")

    def __init__(self, connection: MysqlConnection, deadline: float) -> None:
        self._connection: MysqlConnection | None = connection
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._running = False

    async def fetch_all(self, sql: str, params: Params | None = None) -> list[tuple[Any, ...]]:
        """Runs a query and returns all its rows; DATETIME columns come back as datetimes in UTC.

        Raises:
            DatabaseError: One of its subclasses, as for every statement.
        """
        return (await self._run(render(sql, params))).rows

    async def fetch_one(self, sql: str, params: Params | None = None) -> tuple[Any, ...] | None:
        """Runs a query that finds at most one row, and returns it or None."""
        rows = (await self._run(render(sql, params))).rows
        if len(rows) > 1:
            raise ValueError(f"a query for one row returned {len(rows)}")
        return rows[0] if rows else None

    async def execute(self, sql: str, params: Params | None = None) -> int:
        """Runs a statement and returns how many rows it matched, changed or not."""
        return int((await self._run(render(sql, params))).affected_rows())

    async def insert_many(self, sql: str, rows: Sequence[Row]) -> int:
        """Inserts all rows by one statement and returns how many (see `sql_literals.render_insert`)."""
        return int((await self._run(render_insert(sql, rows))).affected_rows())

    async def execute_rows(self, sql: str, rows: Sequence[Row], params: Params | None = None) -> int:
        """Runs a statement joined to the given rows and returns how many rows it matched.

        The marker `/*rows:shard,coupon_id:ascii,…*/` in the SQL becomes a derived table (see
        `sql_literals.render_rows`). A guarded update compares the result with `len(rows)`.
        """
        return int((await self._run(render_rows(sql, rows, params))).affected_rows())

    def close(self) -> None:
        """Refuses further statements; the database calls it when the block ends."""
        self._connection = None

    async def _run(self, statement: str) -> MysqlConnection:
        connection = self._connection
        if connection is None:
            raise RuntimeError("the transaction is over")
        if self._running:
            raise RuntimeError("a transaction runs one statement at a time")
        if self._loop.time() >= self._deadline:
            raise DatabaseTimeout(f"{connection.name}: the transaction's time is over")
        self._running = True
        try:
            async with asyncio.timeout_at(self._deadline):
                await connection.run(statement)
        except TimeoutError as error:
            connection.close()
            raise DatabaseTimeout(f"{connection.name}: a statement took too long") from error
        except (pymysql.err.MySQLError, OSError) as error:
            raise translate(error, connection.name) from error
        finally:
            self._running = False
        return connection


class Database:
    """One database with the logical shards it holds.

    Attributes:
        name: Address and schema, without account and password.
        shards: The logical shards of the shard map's ranges for this database.
        pool: The connections, for observation.
    """

    def __init__(self, dsn: Dsn, shards: Sequence[int], settings: PoolSettings) -> None:
        self._queries = load_queries("meshkit", "sql/session.sql")
        self.name = dsn.name
        self.schema = dsn.database
        self.shards = frozenset(shards)
        self.pool = ConnectionPool(dsn, self._queries, settings)

    @asynccontextmanager
    async def transaction(self, *, timeout_s: float) -> AsyncIterator[Transaction]:
        """Begins a transaction, commits it when the block ends, and rolls it back when the block raises.

        A block that is cancelled leaves its connection closed, so that the server rolls back.

        Args:
            timeout_s: Limit for the connection and all statements; the COMMIT, once sent, may take 2 s more.

        Raises:
            Deadlock: Run the whole transaction again.
            DuplicateKey: A unique constraint refused a row.
            DatabaseUnavailable: Nothing was committed.
            CommitOutcomeUnknown: It may have been committed.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        connection, transaction = await self._begin(deadline)
        try:
            try:
                yield transaction
            except Exception:
                await self._roll_back(connection)
                raise
            await self._commit(connection, deadline)
        finally:
            transaction.close()
            # A connection that is still in its transaction, because something was cancelled or failed, isn't kept.
            self.pool.release(connection)

    @asynccontextmanager
    async def snapshot(self, *, timeout_s: float) -> AsyncIterator[Transaction]:
        """Lends a connection in autocommit: each statement sees what was committed before it, and is its own COMMIT."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        connection = await self.pool.acquire(deadline)
        transaction = Transaction(connection, deadline)
        try:
            yield transaction
        finally:
            transaction.close()
            self.pool.release(connection)

    @asynccontextmanager
    async def moment(self, *, timeout_s: float) -> AsyncIterator[Transaction]:
        """Lends a transaction for reading whose statements all see one moment: what was committed when it began.

        It takes no locks. Keep it short: while it lasts, the server keeps old versions of every row that changes.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        connection, transaction = await self._begin(deadline, ("isolate_next", "begin_moment"))
        try:
            yield transaction
            await self._roll_back(connection)
        finally:
            transaction.close()
            self.pool.release(connection)

    async def ping(self, *, timeout_s: float) -> None:
        """Returns when the server answers a statement, and raises DatabaseUnavailable when it doesn't in time."""
        async with self.snapshot(timeout_s=timeout_s) as snapshot:
            await snapshot.fetch_one(self._queries["ping"])

    async def _begin(
        self, deadline: float, statements: Sequence[str] = ("begin",)
    ) -> tuple[MysqlConnection, Transaction]:
        connection = await self.pool.acquire(deadline)
        try:
            return connection, await self._start(connection, deadline, statements)
        except DatabaseTimeout:
            raise
        except DatabaseUnavailable:
            if not connection.is_reused:
                raise
        # The pooled connection had died unnoticed. Nothing was asked of it yet, so a new one takes over, once.
        self.pool.discard_idle()
        connection = await self.pool.acquire(deadline)
        return connection, await self._start(connection, deadline, statements)

    async def _start(self, connection: MysqlConnection, deadline: float, statements: Sequence[str]) -> Transaction:
        transaction = Transaction(connection, deadline)
        try:
            for statement in statements:
                await transaction.execute(self._queries[statement])
        except BaseException:
            transaction.close()
            self.pool.release(connection)
            raise
        return transaction

    async def _roll_back(self, connection: MysqlConnection) -> None:
        if not connection.is_alive:
            return
        try:
            async with asyncio.timeout(_ROLLBACK_TIMEOUT_S):
                await connection.run(self._queries["rollback"])
        except (pymysql.err.MySQLError, OSError):
            # The server rolls back by itself when the connection closes; the block's own error is what matters.
            connection.close()

    async def _commit(self, connection: MysqlConnection, deadline: float) -> None:
        now = asyncio.get_running_loop().time()
        if not connection.is_alive:
            raise DatabaseUnavailable(f"{self.name}: the connection was lost before COMMIT was sent")
        if now >= deadline:
            await self._roll_back(connection)
            raise DatabaseTimeout(f"{self.name}: the transaction's time was over before COMMIT was sent")
        try:
            async with asyncio.timeout_at(max(deadline, now + _COMMIT_TIMEOUT_S)):
                await connection.run(self._queries["commit"])
        except (pymysql.err.MySQLError, OSError) as error:
            if is_server_answer(error):
                await self._roll_back(connection)
                raise translate(error, self.name) from error
            connection.close()
            raise CommitOutcomeUnknown(f"{self.name}: the reply to COMMIT was lost") from error


class Databases:
    """All databases of a shard map."""

    def __init__(self, shard_map: ShardMap, settings: PoolSettings) -> None:
        shards: dict[Dsn, list[int]] = {}
        for entry in shard_map.ranges:
            shards.setdefault(Dsn.parse(entry.dsn), []).extend(entry.shards)
        databases = {dsn: Database(dsn, numbers, settings) for dsn, numbers in shards.items()}
        self.all: tuple[Database, ...] = tuple(databases.values())
        self._of_shard = {shard: databases[dsn] for dsn, numbers in shards.items() for shard in numbers}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, shard_map: ShardMap, *, pool_size: int = 8, settings: PoolSettings | None = None
    ) -> AsyncIterator[Self]:
        """Opens pools, one for each distinct DSN, and closes them at the end.

        No connection is made yet: a database that is away doesn't stop a service from starting (see `Database.ping`).

        Args:
            shard_map: Which database holds which shards.
            pool_size: Most connections to one database.
            settings: All bounds, instead of `pool_size` and the defaults.
        """
        databases = cls(shard_map, settings or PoolSettings(size=pool_size))
        try:
            yield databases
        finally:
            await asyncio.gather(*(database.pool.close() for database in databases.all))

    def of(self, shard: int) -> Database:
        """The database that holds a logical shard (0–127).

        Raises:
            KeyError: There is no such shard.
        """
        return self._of_shard[shard]
