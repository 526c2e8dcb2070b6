"""What the coupon databases hold, read and locked past the service; and whether a coupon's records agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pymysql
from pymysql.connections import Connection

from coupon_svc.adapters import mysql_rows
from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow
from meshkit.crypto import Keyring
from meshkit.queries import load_queries
from meshkit.shard_map import Dsn
from tests.harness.stack import PrivateStack

SHARDS = 128
_QUERIES = load_queries("coupon_svc")
# Statements that a test waits for are looked for this often.
_LOOK_EVERY_S = 0.005


@dataclass(frozen=True)
class CouponRow:
    """What a test looks at of a coupon_info row."""

    user_id: int
    balance: Decimal
    status: int
    version: int
    last_hash: bytes
    bound_user_id: int | None
    bound_coupon_id: str | None


def query(connection: Connection[Any], sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


class OpenTransaction:
    """A transaction of the test's own; it ends with its block at the latest."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def run(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        return query(self._connection, sql, params)

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()


class Books:
    """Both coupon databases."""

    def __init__(self, stack: PrivateStack) -> None:
        ranges = stack.shard_map("coupon").ranges
        self._dsn_of = {shard: entry.dsn for entry in ranges for shard in entry.shards}
        self.dsns = tuple(dict.fromkeys(self._dsn_of.values()))
        self._readers = {dsn: self._connect(dsn, autocommit=True) for dsn in self.dsns}
        self._audit = Keyring.parse((stack.mesh / "secrets" / "audit_keyring").read_text().strip())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    @staticmethod
    def _connect(dsn: str, *, autocommit: bool) -> Connection[Any]:
        place = Dsn.parse(dsn)
        return pymysql.connect(
            host=place.host,
            port=place.port,
            user=place.user,
            password=place.password,
            database=place.database,
            autocommit=autocommit,
            read_timeout=10,
            init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        )

    # --- reading ---

    def rows(self, shard: int, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of the database that holds a shard, as committed now."""
        return self._rows_in(self._dsn_of[shard % SHARDS], sql, *params)

    def everywhere(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of both databases."""
        return [row for dsn in self.dsns for row in self._rows_in(dsn, sql, *params)]

    def _rows_in(self, dsn: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
        try:
            return query(self._readers[dsn], sql, params)
        except pymysql.err.OperationalError:
            # Another test may have started MariaDB again.
            self._readers[dsn] = self._connect(dsn, autocommit=True)
            return query(self._readers[dsn], sql, params)

    def change(self, shard: int, sql: str, *params: object) -> None:
        """Changes exactly one row past the service."""
        with self.transaction(shard) as tx:
            tx.run(sql, *params)
            ((changed,),) = tx.run("SELECT ROW_COUNT()")
            assert changed == 1, f"{changed} rows changed by {sql}"
            tx.commit()

    def coupon(self, coupon_id: str) -> CouponRow:
        (row,) = self.rows(
            int(coupon_id),
            "SELECT user_id, balance, status, version, last_hash, bound_user_id, bound_coupon_id FROM coupon_info "
            "WHERE coupon_id = %s",
            coupon_id,
        )
        return CouponRow(*row)

    def journal(self, coupon_id: str) -> list[JournalRow]:
        """A coupon's journal, oldest first."""
        columns = _QUERIES["journal"].partition("WHERE")[0]
        return [
            mysql_rows.journal((*row[:20], _utc(row[20]), *row[21:]))
            for row in self.rows(int(coupon_id[-19:]), f"{columns} WHERE coupon_id = %s ORDER BY seq", coupon_id)
        ]

    def transactions(self, coupon_id: str) -> list[tuple[Any, ...]]:
        """(transaction_id, amount, deduction, balance after, held, request_id, merchant, order) in consuming order."""
        return self.rows(
            int(coupon_id),
            "SELECT transaction_id, amount_minor, deduction_minor, balance_after_minor, settlement_held, request_id, "
            "merchant_id, order_id FROM coupon_transaction WHERE coupon_id = %s ORDER BY consume_time, transaction_id",
            coupon_id,
        )

    def records(self, request: str) -> list[tuple[Any, ...]]:
        """(shard, caller, request hash, response) of a request_id in either database."""
        return self.everywhere(
            "SELECT shard, caller, request_hash, response FROM request_record WHERE request_id = %s", request
        )

    def checksums(self) -> dict[str, int]:
        """A checksum of every table of both databases: equal as long as nothing changed."""
        found: dict[str, int] = {}
        for dsn in self.dsns:
            tables = ", ".join(f"`{name}`" for (name,) in self._rows_in(dsn, "SHOW TABLES"))
            found.update(dict(self._rows_in(dsn, f"CHECKSUM TABLE {tables}")))
        assert len(found) > 20, "both databases have their tables"
        return found

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Every table of both databases is the same before and after the block."""
        before = self.checksums()
        yield
        assert self.checksums() == before

    # --- agreeing ---

    def sign(self, data: bytes) -> tuple[str, bytes]:
        """As the service signs journal rows."""
        return self._audit.mac("coupon-journal", data)

    def assert_agree(self, coupon_id: str) -> list[JournalRow]:
        """The coupon, its journal, its transactions and its outbox tell the same story; gives the journal."""
        coupon, journal = self.coupon(coupon_id), self.assert_chained(coupon_id)
        assert len(journal) == coupon.version
        assert coupon.last_hash == journal[-1].hash, "the coupon holds the head of the chain"
        assert journal[-1].status_after == coupon.status
        assert journal[-1].balance_after_minor == coupon.balance * 100
        assert sum(row.amount_minor for row in journal) == coupon.balance * 100
        consumed = [row for row in journal if row.kind is JournalKind.CONSUMED]
        assert sorted((row.transaction_id, row.deduction_minor, row.balance_after_minor) for row in consumed) == sorted(
            (row[0], row[2], row[3]) for row in self.transactions(coupon_id)
        )
        return journal

    def assert_chained(self, chain: str) -> list[JournalRow]:
        """The journal of a coupon, a batch or an account has no gap, its hashes hold, and its events are to go out."""
        journal = self.journal(chain)
        assert [row.seq for row in journal] == [*range(1, len(journal) + 1)], "the journal has no gap"
        before = FIRST_HASH
        for row in journal:
            assert row.prev_hash == before, f"row {row.seq} is chained to the row before it"
            assert self.sign(row.chained_bytes()) == (row.key_id, row.hash), "its hash holds"
            before = row.hash
        published = self.rows(int(chain[-19:]), "SELECT seq FROM outbox WHERE coupon_id = %s ORDER BY seq", chain)
        assert [seq for (seq,) in published] == [row.seq for row in journal]
        return journal

    # --- standing in the way ---

    @contextmanager
    def transaction(self, shard: int) -> Iterator[OpenTransaction]:
        """A transaction in the database of a shard, rolled back at the end of the block unless it was committed."""
        connection = self._connect(self._dsn_of[shard % SHARDS], autocommit=False)
        try:
            yield OpenTransaction(connection)
        finally:
            connection.close()

    @contextmanager
    def coupon_held(self, coupon_id: str) -> Iterator[OpenTransaction]:
        """Holds a coupon's row lock: whoever consumes it waits with its group."""
        with self.transaction(int(coupon_id)) as tx:
            found = tx.run(
                "SELECT coupon_id FROM coupon_info WHERE shard = %s AND coupon_id = %s FOR UPDATE",
                int(coupon_id) % SHARDS,
                coupon_id,
            )
            assert found, "there is such a coupon"
            yield tx

    @contextmanager
    def account_held(self, user_id: int) -> Iterator[OpenTransaction]:
        """Holds the account row of a user who has one: whoever writes to the user's coupons waits."""
        with self.transaction(user_id) as tx:
            found = tx.run(
                "SELECT status FROM account_state WHERE shard = %s AND user_id = %s FOR UPDATE",
                user_id % SHARDS,
                user_id,
            )
            assert found, "there is such an account"
            yield tx

    @contextmanager
    def shard_held(self, shard: int) -> Iterator[OpenTransaction]:
        """Holds a shard's owner row: whoever writes to the shard waits."""
        with self.transaction(shard) as tx:
            tx.run("SELECT epoch FROM shard_owner WHERE shard = %s FOR UPDATE", shard)
            yield tx

    async def until_waiting(self, statement: str, *, count: int = 1, timeout_s: float = 5.0) -> None:
        """Waits until this many of the services' statements that contain a text are at work in MariaDB."""
        deadline = time.monotonic() + timeout_s
        while True:
            ((found,),) = self.rows(
                0,
                "SELECT COUNT(*) FROM information_schema.processlist WHERE command = 'Query' AND info LIKE %s "
                "AND id <> CONNECTION_ID()",
                f"%{statement}%",
            )
            if found == count:
                return
            assert time.monotonic() < deadline, f"{found}, not {count} statements wait with {statement!r}"
            await asyncio.sleep(_LOOK_EVERY_S)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)
