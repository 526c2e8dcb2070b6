"""A bounded pool of connections to one database, which keeps only connections that are in step with the server."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from meshkit.mysql_connection import MysqlConnection
from meshkit.mysql_errors import DatabaseTimeout, DatabaseUnavailable
from meshkit.shard_map import Dsn

_log = logging.getLogger(__name__)

# How long after a failed attempt further ones fail without being made.
_AWAY_MEMORY_S = 0.1
_QUIT_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of a pool.

    Attributes:
        size: Most connections at a time.
        max_waiting: Most callers that wait for one; further ones are refused at once.
        connect_timeout_s: Limit for opening a connection with its session.
        lock_wait_s: How long a statement may wait for a row lock.
    """

    size: int = 8
    max_waiting: int = 1024
    connect_timeout_s: float = 1.0
    lock_wait_s: int = 3


class ConnectionPool:
    """Lends connections; see `acquire` and `release`."""

    def __init__(self, dsn: Dsn, queries: Mapping[str, str], settings: PoolSettings) -> None:
        self._dsn = dsn
        self._queries = queries
        self._settings = settings
        self._idle: deque[MysqlConnection] = deque()
        self._free = asyncio.Semaphore(settings.size)
        self._lent = 0
        self._waiting = 0
        self._closed = False
        self._away_until = 0.0
        self._away_reason = ""
        self._away = False
        self.opened_total = 0
        self.discarded_total = 0

    @property
    def idle(self) -> int:
        """Open connections that nobody uses."""
        return len(self._idle)

    @property
    def lent(self) -> int:
        """Connections in use or being opened."""
        return self._lent

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return self._waiting

    async def acquire(self, deadline: float) -> MysqlConnection:
        """Lends a live connection, the most recently used one first.

        Args:
            deadline: In the event loop's time, s.

        Raises:
            DatabaseTimeout: No connection became free by the deadline.
            DatabaseUnavailable: The server is away, too many wait already, or the pool is closed.
        """
        if self._free.locked():
            await self._wait(deadline)
        else:
            await self._free.acquire()
        self._lent += 1
        try:
            return self._take_idle() or await self._open(deadline)
        except BaseException:
            self._give_back()
            raise

    def release(self, connection: MysqlConnection) -> None:
        """Takes a lent connection back; one that isn't fit for another user is closed."""
        if connection.is_poolable and not self._closed:
            self._idle.append(connection)
        else:
            self._discard(connection)
        self._give_back()

    def discard_idle(self) -> None:
        """Closes what lies idle, since one of its kind turned out to be dead."""
        while self._idle:
            self._discard(self._idle.pop())

    async def close(self) -> None:
        """Says goodbye on idle connections; lent ones are closed when they come back."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_QUIT_TIMEOUT_S):
                        await connection.ensure_closed()
            connection.close()
        # A closed transport lets its socket go in the loop's next turn.
        await asyncio.sleep(0)

    async def _wait(self, deadline: float) -> None:
        if self._waiting >= self._settings.max_waiting:
            raise DatabaseUnavailable(f"{self._dsn.name}: {self._waiting} callers wait for a connection already")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError as error:
            raise DatabaseTimeout(f"{self._dsn.name}: no connection became free in time") from error
        finally:
            self._waiting -= 1

    def _take_idle(self) -> MysqlConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_poolable:
                connection.is_reused = True
                return connection
            self._discard(connection)
        return None

    async def _open(self, deadline: float) -> MysqlConnection:
        now = asyncio.get_running_loop().time()
        if self._closed:
            raise DatabaseUnavailable(f"{self._dsn.name}: the pool is closed")
        if now < self._away_until:
            raise DatabaseUnavailable(self._away_reason)
        if now >= deadline:
            raise DatabaseTimeout(f"{self._dsn.name}: no time is left to connect")
        settings = self._settings
        timeout_s = min(settings.connect_timeout_s, deadline - now)
        try:
            connection = await MysqlConnection.open(
                self._dsn, self._queries, lock_wait_s=settings.lock_wait_s, timeout_s=timeout_s
            )
        except DatabaseUnavailable as error:
            # A caller in a hurry proves nothing about the server.
            if not isinstance(error, DatabaseTimeout) or timeout_s >= settings.connect_timeout_s:
                self._away_until = asyncio.get_running_loop().time() + _AWAY_MEMORY_S
                self._away_reason = str(error)
                self._note(error)
            raise
        self._note(None)
        self.opened_total += 1
        return connection

    def _note(self, failure: DatabaseUnavailable | None) -> None:
        """Logs when the server goes away and when it is back, not every attempt in between."""
        away = failure is not None
        if away == self._away:
            return
        self._away = away
        if failure is None:
            _log.warning("database_back", extra={"database": self._dsn.name})
        else:
            fields = {"database": self._dsn.name, "error": type(failure).__name__, "code": failure.code}
            _log.warning("database_away", extra=fields)

    def _discard(self, connection: MysqlConnection) -> None:
        self.discarded_total += 1
        connection.close()

    def _give_back(self) -> None:
        self._lent -= 1
        self._free.release()
