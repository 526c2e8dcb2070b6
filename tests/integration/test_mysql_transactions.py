"""Transactions, errors and the pool against a real MariaDB, some through a proxy that misbehaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import meshkit.mysql
from meshkit.mysql import (
    CommitOutcomeUnknown,
    Database,
    DatabaseError,
    Databases,
    DatabaseTimeout,
    DatabaseUnavailable,
    Deadlock,
    DuplicateKey,
    PoolSettings,
    SessionRefused,
    ShardMap,
    ShardRange,
    StatementRefused,
    Transaction,
)
from meshkit.sql_literals import render_rows
from tests.integration.mysql_proxy import MysqlProxy, mysql_proxy
from tests.integration.private_mariadb import PrivateMariaDB, running_mariadb

SCHEMA = "mesh_0"
CREATE = """
CREATE TABLE coupon (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  balance DECIMAL(12,2) NOT NULL,
  code VARBINARY(300) NULL,
  note VARCHAR(200) NULL,
  time DATETIME(6) NULL,
  PRIMARY KEY (shard, coupon_id),
  UNIQUE KEY uk_code (code)
) ENGINE = InnoDB
"""
INSERT = "INSERT INTO coupon (shard, coupon_id, balance) VALUES (%(shard)s, %(coupon_id)s, %(balance)s)"
BALANCE = "SELECT balance FROM coupon WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s"
LOCK = BALANCE + " FOR UPDATE"
SPEND = """
UPDATE /*rows:shard,coupon_id:ascii,amount*/ d
STRAIGHT_JOIN coupon c ON c.shard = d.shard AND c.coupon_id = d.coupon_id AND c.balance >= d.amount
SET c.balance = c.balance - d.amount
"""


def key(number: int) -> dict[str, object]:
    return {"shard": number % 128, "coupon_id": f"{number:019d}"}


def row(number: int, balance: str = "100.00") -> tuple[int, str, Decimal]:
    return number % 128, f"{number:019d}", Decimal(balance)


@asynccontextmanager
async def opened(dsn: str, settings: PoolSettings | None = None) -> AsyncIterator[Database]:
    shard_map = ShardMap.of([ShardRange(0, 127, dsn)])
    async with Databases.open(shard_map, settings=settings or PoolSettings(size=4)) as databases:
        yield databases.all[0]


@pytest.fixture(scope="module")
async def mariadb(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PrivateMariaDB]:
    async with running_mariadb(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture
async def dsn(mariadb: PrivateMariaDB) -> str:
    dsn = await mariadb.create(SCHEMA)
    await mariadb.administer(f"USE {SCHEMA}", CREATE)
    return dsn


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with opened(dsn) as database:
        yield database


@pytest.fixture
async def proxy(mariadb: PrivateMariaDB) -> AsyncIterator[MysqlProxy]:
    async with mysql_proxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
async def far(mariadb: PrivateMariaDB, proxy: MysqlProxy, dsn: str) -> AsyncIterator[Database]:
    """The same database behind the proxy, with one connection."""
    del dsn
    async with opened(mariadb.dsn(SCHEMA, port=proxy.port), PoolSettings(size=1)) as database:
        yield database


async def balance_of(database: Database, number: int) -> str | None:
    async with database.snapshot(timeout_s=5) as snapshot:
        found = await snapshot.fetch_one(BALANCE, key(number))
    return str(found[0]) if found else None


async def answers_for_itself(database: Database, question: int) -> bool:
    """Whether a query gets its own answer, not what an earlier one left behind."""
    async with database.snapshot(timeout_s=5) as snapshot:
        return await snapshot.fetch_one("SELECT %(q)s", {"q": question}) == (question,)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a server or a proxy
            await asyncio.sleep(0.005)


async def until_waiting(mariadb: PrivateMariaDB, info: str, count: int = 1) -> None:
    """Waits until the server works on statements like this one."""
    async with asyncio.timeout(10):
        while True:
            found = await mariadb.administer(
                f"SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '{info}' AND user <> 'root'"
            )
            if found == [(count,)]:
                return
            await asyncio.sleep(0.005)


# Sessions


async def test_a_session_is_read_committed_strict_and_utc(database: Database) -> None:
    async with database.snapshot(timeout_s=5) as snapshot:
        found = await snapshot.fetch_one(
            "SELECT @@tx_isolation, @@time_zone, @@innodb_lock_wait_timeout, @@character_set_client, @@autocommit"
        )
        assert found == ("READ-COMMITTED", "+00:00", 3, "utf8mb4", 1)
        with pytest.raises(StatementRefused) as refused:
            await snapshot.execute(INSERT, {**key(1), "balance": Decimal("12345678901.00")})
    assert refused.value.code == 1264


@pytest.mark.parametrize(
    ("asked", "becomes", "problem"),
    [
        (b"READ COMMITTED", b"REPEATABLE READ", "isolation is REPEATABLE-READ"),
        (b"STRICT_ALL_TABLES,", b"", "sql_mode isn't strict"),
        (b"STRICT_ALL_TABLES", b"STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES", "NO_BACKSLASH_ESCAPES"),
        (b"'+00:00'", b"'+08:00'", "time_zone is +08:00"),
    ],
)
async def test_a_server_whose_session_is_not_as_asked_is_refused(
    far: Database, proxy: MysqlProxy, asked: bytes, becomes: bytes, problem: str
) -> None:
    proxy.rewrite = lambda text: text.replace(asked, becomes)
    with pytest.raises(SessionRefused) as refused:
        await far.ping(timeout_s=5)
    assert problem in str(refused.value)
    proxy.rewrite = lambda text: text
    await until_heals(far)


async def test_a_refused_login_names_the_account_and_not_the_password(mariadb: PrivateMariaDB, dsn: str) -> None:
    async with opened(dsn.replace("mesh-test", "wrong-geheim")) as database:
        with pytest.raises(DatabaseUnavailable) as refused:
            await database.ping(timeout_s=5)
    assert "Access denied for user 'mesh'" in str(refused.value)
    assert "geheim" not in repr(refused.value) + str(refused.value.__cause__)
    assert mariadb.port


async def test_one_call_sends_one_statement(database: Database) -> None:
    async with database.snapshot(timeout_s=5) as snapshot:
        with pytest.raises(StatementRefused):
            await snapshot.execute("SELECT 1; SELECT 2")
        assert await snapshot.fetch_one("SELECT 3") == (3,)


# Values and statements


async def test_values_come_back_as_they_were_sent(database: Database) -> None:
    values = {
        **key(1),
        "balance": Decimal("9999999999.99"),
        "code": bytes(range(256)),
        "note": 'it\'s "券" \\ 100% \n\0 😀 %s %(x)s -- #',
        "time": datetime(2025, 8, 11, 23, 59, 59, 999999, tzinfo=UTC),
    }
    columns = "shard, coupon_id, balance, code, note, time"
    insert = f"INSERT INTO coupon ({columns}) VALUES ({', '.join(f'%({name})s' for name in columns.split(', '))})"
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.execute(insert, values)
        await transaction.insert_many(insert, [{**values, **key(2), "code": b"", "note": "", "time": None}])
    async with database.snapshot(timeout_s=5) as snapshot:
        found = await snapshot.fetch_all(f"SELECT {columns} FROM coupon ORDER BY shard")
    assert found == [
        tuple(values.values()),
        (2, f"{2:019d}", Decimal("9999999999.99"), b"", "", None),
    ]


async def counters(snapshot: Transaction) -> dict[str, int]:
    found = await snapshot.fetch_all(
        "SHOW SESSION STATUS WHERE Variable_name IN ('Com_insert', 'Com_update_multi', 'Com_update')"
    )
    return {name: int(value) for name, value in found}


async def test_many_rows_are_inserted_and_updated_by_one_statement_each(database: Database) -> None:
    async with database.snapshot(timeout_s=5) as snapshot:
        before = await counters(snapshot)
        assert await snapshot.insert_many(INSERT, [row(number) for number in range(500)]) == 500
        assert await snapshot.execute_rows(SPEND, [row(number, "1.00") for number in range(128)]) == 128
        after = await counters(snapshot)
    assert after["Com_insert"] - before["Com_insert"] == 1
    assert after["Com_update_multi"] + after["Com_update"] - before["Com_update_multi"] - before["Com_update"] == 1


async def test_a_guarded_update_counts_the_rows_it_matched_even_unchanged_ones(database: Database) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.insert_many(INSERT, [row(1, "5.00"), row(2, "0.50"), row(3, "5.00")])
        assert await transaction.execute_rows(SPEND, [row(1, "1.00"), row(2, "1.00"), row(3, "0.00")]) == 2
        assert await transaction.execute("UPDATE coupon SET balance = 5 WHERE shard IN (1, 3)") == 2
        assert await transaction.execute("UPDATE coupon SET balance = 5 WHERE shard IN (1, 3)") == 2


@pytest.mark.parametrize("stored", [100, 20_000])
async def test_row_lists_find_their_rows_by_the_primary_key(database: Database, stored: int) -> None:
    lock = "SELECT balance FROM coupon FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s FOR UPDATE"
    rows = [row(number, "1.00") for number in range(100)]
    async with database.snapshot(timeout_s=20) as snapshot:
        await snapshot.insert_many(INSERT, [row(number) for number in range(stored)])
        await snapshot.fetch_all("ANALYZE TABLE coupon")
        locked = await snapshot.fetch_all(f"EXPLAIN {lock}", {"keys": sorted(entry[:2] for entry in rows)})
        spent = await snapshot.fetch_all(f"EXPLAIN {render_rows(SPEND, rows)}")
    # Columns of EXPLAIN: id, select_type, table, type, possible_keys, key, key_len, ref, rows, Extra.
    assert [(plan[2], plan[3], plan[5]) for plan in locked] == [("coupon", "range", "PRIMARY")]
    assert [plan[8] for plan in locked] == ["100"]
    assert [(plan[2], plan[3], plan[5]) for plan in spent if plan[2] == "c"] == [("c", "eq_ref", "PRIMARY")]


async def test_a_statement_longer_than_the_server_accepts_is_refused_unsent(
    mariadb: PrivateMariaDB, database: Database
) -> None:
    ((limit,),) = await mariadb.administer("SELECT @@max_allowed_packet")
    assert isinstance(limit, int)
    async with database.snapshot(timeout_s=5) as snapshot:
        with pytest.raises(StatementRefused, match="exceeds max_allowed_packet"):
            await snapshot.fetch_one("SELECT LENGTH(%(text)s)", {"text": "x" * limit})
        fits = limit - 64 - len("SELECT LENGTH('')")
        assert await snapshot.fetch_one("SELECT LENGTH(%(text)s)", {"text": "x" * fits}) == (fits,)


async def test_a_query_for_one_row_that_finds_two_is_an_error(database: Database) -> None:
    async with database.snapshot(timeout_s=5) as snapshot:
        with pytest.raises(ValueError, match="returned 2"):
            await snapshot.fetch_one("SELECT 1 UNION SELECT 2")
        assert await snapshot.fetch_one("SELECT 1 FROM coupon") is None


async def test_a_transaction_refuses_use_after_its_end_and_by_two_at_once(database: Database) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        first = asyncio.create_task(transaction.fetch_one("SELECT SLEEP(0.05)"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one statement at a time"):
            await transaction.fetch_one("SELECT 1")
        assert await first == (0,)
    with pytest.raises(RuntimeError, match="is over"):
        await transaction.fetch_one("SELECT 1")


# Commit and rollback


async def test_a_block_that_ends_is_committed_and_one_that_raises_is_rolled_back(database: Database) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.execute(INSERT, {**key(1), "balance": 1})

    async def insert_and_fail() -> None:
        async with database.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(2), "balance": 1})
            raise KeyError

    with pytest.raises(KeyError):
        await insert_and_fail()
    assert [await balance_of(database, number) for number in (1, 2)] == ["1.00", None]
    assert (database.pool.opened_total, database.pool.discarded_total) == (1, 0)


async def test_a_duplicate_is_told_by_its_constraint_and_the_connection_stays(database: Database) -> None:
    insert = "INSERT INTO coupon (shard, coupon_id, balance, code) VALUES (%(shard)s, %(coupon_id)s, 1, %(code)s)"
    names = []
    for number, code in [(1, b"a"), (1, b"b"), (2, b"a")]:
        try:
            async with database.transaction(timeout_s=5) as transaction:
                await transaction.execute(insert, {**key(number), "code": code})
        except DuplicateKey as duplicate:
            names.append(duplicate.constraint)
    assert names == ["PRIMARY", "uk_code"]
    assert database.pool.opened_total == 1


async def test_of_two_transactions_that_cross_one_is_a_deadlocks_victim_and_the_other_commits(
    mariadb: PrivateMariaDB, database: Database
) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.insert_many(INSERT, [row(1), row(2)])
    both_hold_one = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> str:
        async with database.transaction(timeout_s=5) as transaction:
            await transaction.fetch_one(LOCK, key(first))
            await both_hold_one.wait()
            await transaction.fetch_one(LOCK, key(second))
        return "committed"

    outcomes = await asyncio.gather(cross(1, 2), cross(2, 1), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Deadlock, str}
    assert mariadb.process is not None


async def test_a_lock_that_is_held_too_long_is_told_like_a_deadlock(dsn: str) -> None:
    async with opened(dsn, PoolSettings(size=2, lock_wait_s=1)) as database:
        async with database.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
        async with database.transaction(timeout_s=5) as holder:
            await holder.fetch_one(LOCK, key(1))
            with pytest.raises(Deadlock) as waited:
                async with database.transaction(timeout_s=5) as waiter:
                    await waiter.fetch_one(LOCK, key(1))
        assert waited.value.code == 1205


async def test_a_connection_lost_before_commit_means_nothing_was_committed(far: Database, proxy: MysqlProxy) -> None:
    proxy.lose_reply = b"INSERT"
    with pytest.raises(DatabaseUnavailable):
        async with far.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
    assert proxy.replies_lost == 1, "the server never executed the insert"
    assert await balance_of(far, 1) is None


async def test_a_connection_killed_between_statements_means_nothing_was_committed(
    mariadb: PrivateMariaDB, database: Database
) -> None:
    async def insert_and_lose() -> None:
        async with database.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
            (number,) = await transaction.fetch_one("SELECT CONNECTION_ID()") or (0,)
            await mariadb.administer(f"KILL {number}")
            async with asyncio.timeout(5):
                while True:
                    await transaction.fetch_one("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await insert_and_lose()
    assert await balance_of(database, 1) is None


async def test_a_lost_request_to_commit_and_a_lost_reply_to_it_are_both_unknown_outcomes(
    far: Database, proxy: MysqlProxy
) -> None:
    proxy.lose_request = b"COMMIT"
    with pytest.raises(CommitOutcomeUnknown):
        async with far.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
    proxy.lose_request, proxy.lose_reply = None, b"COMMIT"
    with pytest.raises(CommitOutcomeUnknown):
        async with far.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(2), "balance": 2})
    proxy.lose_reply = None
    assert proxy.replies_lost == 1
    assert [await balance_of(far, number) for number in (1, 2)] == [None, "2.00"]


async def test_a_commit_whose_reply_does_not_come_in_time_is_an_unknown_outcome(
    far: Database, proxy: MysqlProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshkit.mysql, "_COMMIT_TIMEOUT_S", 0.1)
    await far.ping(timeout_s=5)
    proxy.hold_reply = b"COMMIT"
    with pytest.raises(CommitOutcomeUnknown):
        async with far.transaction(timeout_s=0.2) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
    assert proxy.replies_lost == 1
    proxy.hold_reply = None
    assert await balance_of(far, 1) == "1.00"
    assert far.pool.opened_total == 2


async def test_a_deadline_that_passes_before_commit_is_sent_commits_nothing(database: Database) -> None:
    await database.ping(timeout_s=5)

    async def dawdle() -> None:
        async with database.transaction(timeout_s=0.2) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})
            end = time.monotonic() + 0.2
            await until(lambda: time.monotonic() > end)

    with pytest.raises(DatabaseTimeout, match="before COMMIT was sent"):
        await dawdle()
    assert await balance_of(database, 1) is None
    assert database.pool.opened_total == 1


# Cancellation and broken connections


async def test_a_cancelled_query_leaves_no_stale_answer_for_the_next_one(mariadb: PrivateMariaDB, dsn: str) -> None:
    async with opened(dsn, PoolSettings(size=1)) as database:

        async def slow() -> None:
            async with database.snapshot(timeout_s=5) as snapshot:
                await snapshot.fetch_one("SELECT 'stale' FROM (SELECT SLEEP(0.3)) s")

        task = asyncio.create_task(slow())
        await until_waiting(mariadb, "%stale%")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await answers_for_itself(database, 7)
        assert (database.pool.opened_total, database.pool.discarded_total, database.pool.lent) == (2, 1, 0)


async def test_a_query_that_takes_too_long_leaves_no_stale_answer_for_the_next_one(dsn: str) -> None:
    async with opened(dsn, PoolSettings(size=1)) as database:
        await database.ping(timeout_s=5)
        started = time.monotonic()
        with pytest.raises(DatabaseTimeout):
            async with database.snapshot(timeout_s=0.1) as snapshot:
                await snapshot.fetch_one("SELECT 'stale' FROM (SELECT SLEEP(5)) s")
        assert time.monotonic() - started < 2
        assert await answers_for_itself(database, 7)
        assert (database.pool.opened_total, database.pool.discarded_total) == (2, 1)


async def test_a_reply_out_of_step_costs_the_connection_and_nothing_else(far: Database, proxy: MysqlProxy) -> None:
    await far.ping(timeout_s=5)
    proxy.spoil_reply = b"SELECT 'spoilt'"
    with pytest.raises(DatabaseUnavailable):
        async with far.snapshot(timeout_s=5) as snapshot:
            await snapshot.fetch_one("SELECT 'spoilt'")
    proxy.spoil_reply = None
    assert await answers_for_itself(far, 7)
    assert (far.pool.opened_total, far.pool.discarded_total) == (2, 1)


async def test_a_transaction_cancelled_between_statements_is_rolled_back_and_lets_its_locks_go(
    database: Database,
) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.execute(INSERT, {**key(1), "balance": 1})
    holds = asyncio.Event()

    async def hold() -> None:
        async with database.transaction(timeout_s=5) as transaction:
            await transaction.execute("UPDATE coupon SET balance = 9")
            holds.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await holds.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction(timeout_s=5) as transaction:
        assert await transaction.fetch_one(LOCK, key(1)) == (Decimal("1.00"),)
    assert (database.pool.opened_total, database.pool.discarded_total) == (2, 1)


async def test_a_transaction_cancelled_in_mid_commit_stays_cancelled_and_its_connection_goes(
    far: Database, proxy: MysqlProxy
) -> None:
    proxy.hold_reply = b"COMMIT"

    async def commit() -> None:
        async with far.transaction(timeout_s=5) as transaction:
            await transaction.execute(INSERT, {**key(1), "balance": 1})

    task = asyncio.create_task(commit())
    await until(lambda: proxy.replies_lost == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.hold_reply = None
    assert await answers_for_itself(far, 7)
    assert far.pool.discarded_total == 1


async def test_a_pooled_connection_that_died_unnoticed_is_replaced_at_begin(far: Database, proxy: MysqlProxy) -> None:
    await far.ping(timeout_s=5)
    proxy.lose_request = b"START TRANSACTION"
    cut = proxy.connections

    def mend(text: bytes) -> bytes:
        if proxy.connections > cut:
            proxy.lose_request = None
        return text

    proxy.rewrite = mend
    async with far.transaction(timeout_s=5) as transaction:
        await transaction.execute(INSERT, {**key(1), "balance": 1})
    assert proxy.connections == cut + 1
    assert await balance_of(far, 1) == "1.00"


# The pool


async def test_a_full_pool_makes_callers_wait_until_their_deadline_and_no_longer(dsn: str) -> None:
    async with opened(dsn, PoolSettings(size=2, max_waiting=1)) as database:
        async with database.snapshot(timeout_s=5), database.snapshot(timeout_s=5):
            started = time.monotonic()
            with pytest.raises(DatabaseTimeout, match="no connection became free"):
                await database.ping(timeout_s=0.1)
            assert 0.09 < time.monotonic() - started < 2
            waiter = asyncio.create_task(database.ping(timeout_s=5))
            await until(lambda: database.pool.waiting == 1)
            with pytest.raises(DatabaseUnavailable, match="callers wait"):
                await database.ping(timeout_s=5)
        await waiter
        assert (database.pool.opened_total, database.pool.lent, database.pool.waiting) == (2, 0, 0)


async def test_a_waiter_that_is_cancelled_takes_no_connection_with_it(dsn: str) -> None:
    async with opened(dsn, PoolSettings(size=1)) as database:
        async with database.snapshot(timeout_s=5):
            waiters = [asyncio.create_task(database.ping(timeout_s=5)) for _ in range(3)]
            await until(lambda: database.pool.waiting == 3)
            waiters[0].cancel()
            waiters[1].cancel()
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
        assert database.pool.lent == 0
        await database.ping(timeout_s=5)


async def test_a_server_that_accepts_but_never_speaks_costs_no_more_than_the_connect_timeout() -> None:
    writers: list[asyncio.StreamWriter] = []
    mute = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    settings = PoolSettings(size=2, connect_timeout_s=0.2)
    async with opened(f"mysql://a:b@127.0.0.1:{port}/c", settings) as database:
        started = time.monotonic()
        outcomes = await asyncio.gather(*(database.ping(timeout_s=5) for _ in range(20)), return_exceptions=True)
        assert time.monotonic() - started < 2
        assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
        assert len(writers) == 2, "callers that waited tried again although the server was known to be away"
    for writer in writers:
        writer.close()
    mute.close()
    await mute.wait_closed()


async def until_heals(database: Database) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await database.ping(timeout_s=1)
            except DatabaseError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_killed_server_fails_callers_fast_and_the_pool_heals_when_it_is_back(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_mariadb(tmp_path_factory.mktemp("killed")) as server:
        dsn = await server.create(SCHEMA)
        await server.administer(f"USE {SCHEMA}", CREATE)
        async with opened(dsn) as database:
            await asyncio.gather(*(answers_for_itself(database, number) for number in range(8)))
            assert database.pool.idle > 1
            with pytest.raises(DatabaseUnavailable):
                await insert_and_kill(database, server)
            started = time.monotonic()
            outcomes = await asyncio.gather(*(database.ping(timeout_s=5) for _ in range(100)), return_exceptions=True)
            assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
            assert time.monotonic() - started < 4
            await server.start()
            await until_heals(database)
            assert await balance_of(database, 1) is None
            assert database.pool.lent == 0
    events = [record.message for record in caplog.records if record.name == "meshkit.mysql_pool"]
    assert events == ["database_away", "database_back"]


async def test_a_server_whose_binary_log_holds_statements_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with (
        running_mariadb(tmp_path_factory.mktemp("binlog"), "--log-bin=binlog", "--binlog-format=STATEMENT") as server,
        opened(await server.create(SCHEMA)) as database,
    ):
        with pytest.raises(SessionRefused, match="binlog_format is STATEMENT, not ROW"):
            await database.ping(timeout_s=5)
        await server.administer("SET GLOBAL binlog_format = 'ROW'")
        await until_heals(database)


async def insert_and_kill(database: Database, server: PrivateMariaDB) -> None:
    async with database.transaction(timeout_s=5) as transaction:
        await transaction.execute(INSERT, {**key(1), "balance": 1})
        server.kill()
        await transaction.fetch_one("SELECT 1")


async def test_every_statement_of_a_moment_sees_what_was_committed_when_it_began(database: Database) -> None:
    async with database.transaction(timeout_s=5) as tx:
        await tx.insert_many(INSERT, [row(1)])
    async with database.moment(timeout_s=5) as moment:
        async with database.transaction(timeout_s=5) as tx:
            await tx.execute("UPDATE coupon SET balance = 7 WHERE shard = %(shard)s", key(1))
            await tx.insert_many(INSERT, [row(2)])
        assert await moment.fetch_one(BALANCE, key(1)) == (Decimal("100.00"),)
        assert await moment.fetch_one(BALANCE, key(2)) is None
        with pytest.raises(DatabaseError):
            await moment.insert_many(INSERT, [row(3)])
    # The connection went back as it was: the next transaction sees each commit.
    async with database.transaction(timeout_s=5) as tx:
        assert await tx.fetch_one(BALANCE, key(1)) == (Decimal("7.00"),)
        async with database.snapshot(timeout_s=5) as other:
            await other.execute("UPDATE coupon SET balance = 8 WHERE shard = %(shard)s", key(1))
        assert await tx.fetch_one(BALANCE, key(1)) == (Decimal("8.00"),)


async def test_a_moment_whose_block_raises_leaves_nothing_behind(database: Database) -> None:
    async def fails() -> None:
        async with database.moment(timeout_s=5) as moment:
            await moment.fetch_all("SELECT 1")
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    async with database.transaction(timeout_s=5) as tx:
        await tx.insert_many(INSERT, [row(1)])
