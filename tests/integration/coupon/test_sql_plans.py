"""Every statement of coupon_svc that locks or looks rows up finds them by a key, in a small and in a large database.

The large one has 100,000 rows in each hot table, so that a run stays short on two cores; PLAN_ROWS=2000000 makes it as
large as the rule says; filling it then takes a minute, and the plans are the same.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from meshkit.migrations import migrate, seed_shard_owner
from meshkit.mysql import Database, Databases, ShardMap, ShardRange, Transaction
from meshkit.queries import load_queries
from meshkit.sql_literals import render_rows
from tests.harness.stack import PrivateStack

THEMES = ("queries", "accounts", "caps", "expiry", "recall")
QUERIES = {name: sql for theme in THEMES for name, sql in load_queries("coupon_svc", f"sql/{theme}.sql").items()}
SHARDS = 128
FEW = 100
MANY = int(os.environ.get("PLAN_ROWS", "100000"))
# A group is at most 128 consumes; lists of this length once made the server scan the table.
LIST = 150
FOUND_BY_KEY = {"const", "eq_ref", "ref", "range"}

# What a row has values for below; the rest is up to the schema.
_COLUMNS = {
    "coupon_info": "shard, coupon_id, user_id, balance, status, batch_id, terms_id, expires_at, version, last_hash, "
    "code_sealed, create_time",
    "account_state": "shard, user_id, status, version, update_time",
    "request_record": "shard, caller, request_id, request_hash, response, create_time, expire_time",
    "code_index": "shard, key_id, code_hmac, coupon_id, batch_id, made_by",
    "coupon_transaction": "shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, "
    "deduction_minor, balance_after_minor, settlement_held, caller, request_id, consume_time",
    "coupon_journal": "shard, coupon_id, seq, month, kind, status_before, status_after, user_id, merchant_id, "
    "order_id, amount_minor, order_amount_minor, deduction_minor, balance_after_minor, transaction_id, "
    "original_transaction_id, settlement_held, lock_fence, caller, request_id, trace_id, event_time, key_id, "
    "prev_hash, hash",
    "coupon_terms": "shard, terms_id, batch_id, terms, create_time",
    "batch": "shard, batch_id, terms_id, name, total_quantity, issued_quantity, code_length, block_scope, version, "
    "create_time, uses_per_user, spend_cap_minor, recall_state",
    "batch_draw": "shard, batch_id, caller, request_id, request_hash, quantity, create_time",
    "batch_recall": "shard, batch_id, reason, stake_coupons, stake_minor, stake_unbounded, caller, request_id, "
    "trace_id, start_time",
    "recall_part": "shard, batch_id, after_coupon_id, voided_coupons, voided_minor",
    "batch_use": "shard, user_id, batch_id, ordinal, transaction_id",
    "spend_slice": "shard, batch_id, leased_minor, spent_minor",
    "spend_grant": "shard, batch_id, holder, granted_minor",
}
# Row number n, counted from 1, lies in shard (n - 1) DIV per; `per` is how many rows a shard has.
_ROWS = {
    "coupon_info": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), n.shard + 128 * (n.seq MOD 50), 100, "
    "2 + n.seq MOD 2, LPAD(n.seq DIV 10, 19, '0'), REPEAT('2', 19), '2026-01-01' + INTERVAL n.seq MINUTE, 1, "
    "REPEAT('h', 32), '', '2026-01-01'",
    "account_state": "n.shard, n.seq * 128 + n.shard, 1, 1, '2026-01-01'",
    "request_record": "n.shard, CONCAT('till-', n.seq MOD 3), LPAD(n.seq, 12, '0'), REPEAT('h', 32), 'reply', "
    "'2026-01-01', '2026-01-01' + INTERVAL n.seq MINUTE",
    "code_index": "n.shard, 'k1', UNHEX(LPAD(HEX(n.seq), 64, '0')), LPAD(n.seq * 128 + n.shard, 19, '0'), "
    "REPEAT('1', 19), REPEAT('m', 32)",
    "coupon_transaction": "n.shard, CONCAT('TX20260101', LPAD(n.seq * 128 + n.shard, 19, '0')), REPEAT('1', 19), "
    "n.shard, CONCAT('m-', n.seq MOD 100), CONCAT('o-', n.seq), 1, 1, 0, 0, 'till-1', LPAD(n.seq, 12, '0'), "
    "'2026-01-01'",
    "coupon_journal": "n.shard, LPAD(((n.seq + 3) DIV 4) * 128 + n.shard, 19, '0'), 1 + n.seq MOD 4, 202601, 5, "
    "3, 3, 1, 'm', '', -1, 1, 1, 1, NULL, NULL, 0, NULL, 'till-1', 'r', REPEAT('0', 32), '2026-01-01', 'k1', "
    "REPEAT('p', 32), REPEAT('h', 32)",
    "coupon_terms": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), REPEAT('1', 19), '{}', '2026-01-01'",
    "batch": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), REPEAT('2', 19), 'b', NULL, 0, 12, 0, 1, '2026-01-01', "
    "NULL, 1000, IF(n.seq MOD 50, 0, 1)",
    "batch_draw": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), 'ops', 'r', REPEAT('h', 32), 1, '2026-01-01'",
    "batch_recall": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), 'r', 1, 1, 0, 'ops', 'r', REPEAT('0', 32), "
    "'2026-01-01'",
    "recall_part": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), '', 0, 0",
    "batch_use": "n.shard, n.seq * 128 + n.shard, REPEAT('1', 19), 1, CONCAT('TX', n.seq)",
    "spend_slice": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), 1000, 0",
    "spend_grant": "n.shard, LPAD(n.seq * 128 + n.shard, 19, '0'), 0, 100",
}
_HOT = {"coupon_info", "account_state", "request_record", "code_index"}


@dataclass(frozen=True)
class Filled:
    """A database of `rows` rows in each hot table, a tenth of that in the others."""

    database: Database
    rows: int

    def per_shard(self, table: str) -> int:
        rows = self.rows if table in _HOT else max(FEW, self.rows // 10)
        return -(-rows // SHARDS)

    def keys(self, table: str, count: int) -> list[tuple[int, int]]:
        """(shard, number of the row) of existing rows, spread over the table, in key order."""
        per = self.per_shard(table)
        rows = self.rows if table in _HOT else max(FEW, self.rows // 10)
        chosen = range(1, rows + 1, max(1, rows // count))
        return [((number - 1) // per, number) for number in chosen][:count]

    async def fill(self) -> None:
        await migrate(self.database, "coupon_svc")
        await seed_shard_owner(self.database, frozenset(range(SHARDS)))
        for table, values in _ROWS.items():
            rows = self.rows if table in _HOT else max(FEW, self.rows // 10)
            numbers = f"(SELECT seq, (seq - 1) DIV {self.per_shard(table)} AS shard FROM seq_1_to_{rows})"
            async with self.database.snapshot(timeout_s=300) as session:
                # The tables are empty: they are filled as fast as the server can.
                await session.execute("SET SESSION unique_checks = 0, foreign_key_checks = 0")
                written = await session.execute(
                    f"INSERT INTO {table} ({_COLUMNS[table]}) SELECT {values} FROM {numbers} AS n"
                )
                await session.execute("SET SESSION unique_checks = 1, foreign_key_checks = 1")
                assert written == rows
                await session.fetch_all(f"ANALYZE TABLE {table}")


def coupon_id(shard: int, number: int) -> str:
    return f"{number * SHARDS + shard:019d}"


@pytest.fixture(scope="module", params=[FEW, MANY])
async def filled(stores: PrivateStack, request: pytest.FixtureRequest) -> AsyncIterator[Filled]:
    async with AsyncExitStack() as stack:
        dsn = stack.enter_context(stores.mariadb.scratch_database())
        shard_map = ShardMap.of([ShardRange(0, SHARDS - 1, dsn)])
        databases = await stack.enter_async_context(Databases.open(shard_map, pool_size=1))
        filled = Filled(databases.all[0], request.param)
        await filled.fill()
        yield filled


@dataclass(frozen=True)
class Plan:
    """How a statement must find its rows.

    Attributes:
        params: Its parameters.
        key: The index it uses.
        reads: How many rows it may look at.
        rows: For a statement joined to rows: these.
        groups: For a statement that groups: at most this many, which pass through a temporary table.
    """

    params: Mapping[str, object] = field(default_factory=dict)
    key: str = "PRIMARY"
    reads: int = 1
    rows: Sequence[tuple[object, ...]] = ()
    groups: int = 0

    def statement(self, name: str) -> str:
        if self.rows:
            return render_rows(QUERIES[name], self.rows, self.params).replace("%", "%%")
        return QUERIES[name]


def plans(filled: Filled, name: str, count: int) -> Plan:
    """The plan a statement must have for `count` keys; count is 1 for a statement of one key."""
    coupons = [(shard, coupon_id(shard, number)) for shard, number in filled.keys("coupon_info", count)]
    users = [(shard, number * SHARDS + shard) for shard, number in filled.keys("account_state", count)]
    records = [
        (shard, f"till-{number % 3}", f"{number:012d}") for shard, number in filled.keys("request_record", count)
    ]
    codes = [(shard, "k1", number.to_bytes(32, "big")) for shard, number in filled.keys("code_index", count)]
    shard, number = filled.keys("coupon_info", 1)[0]
    one = {"shard": shard, "coupon_id": coupon_id(shard, number)}
    batch = {"shard": shard, "batch_id": coupon_id(*filled.keys("batch", 1)[0])}
    counter = {"shard": 5, "code_length": 12, "next_counter": 7}
    batches = [(shard, coupon_id(shard, number)) for shard, number in filled.keys("batch", count)]
    uses = [(shard, number * SHARDS + shard, "1" * 19) for shard, number in filled.keys("batch_use", count)]
    # Minutes and batches rise with the number of a coupon, so that a shard has some of each.
    some = {"shard": shard, "batch_id": f"{number // 10:019d}"}
    now = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    later = datetime(2099, 1, 1, tzinfo=UTC)
    first = datetime(1970, 1, 1, tzinfo=UTC)
    known: dict[str, Plan] = {
        "lock_account": Plan({"shard": users[0][0], "user_id": users[0][1]}),
        "store_account": Plan(
            {
                "shard": users[0][0],
                "user_id": users[0][1],
                "status": 2,
                "reason": "r",
                "last_seq": 1,
                "last_hash": bytes(32),
                "update_time": now,
            }
        ),
        "uses": Plan({"keys": uses}, reads=count),
        "lock_uses": Plan({"keys": uses}, reads=count),
        "delete_use": Plan(
            {"shard": uses[0][0], "user_id": uses[0][1], "batch_id": uses[0][2], "transaction_id": "TX1"}
        ),
        "lock_slices": Plan({"keys": batches}, reads=count),
        "spend_slices": Plan(rows=[(*key, 1) for key in batches], reads=2 * count),
        "return_to_slices": Plan(rows=[(*key, 1) for key in batches], reads=2 * count),
        "get_slice": Plan(batch),
        "raise_slice": Plan({**batch, "leased_minor": 2_000}),
        "granted": Plan({**batch, "holder": 0}, reads=2),
        "count_grant": Plan({**batch, "more_minor": 1}),
        "ungranted": Plan(batch),
        "due_coupons": Plan(
            {"shard": shard, "now": now, "after_due": first, "after_id": "", "limit": 10},
            key="idx_due",
            reads=11,
        ),
        "still_due": Plan({"keys": [*coupons], "now": later}, reads=count),
        # All coupons of that batch in the shard: ten at most.
        "count_by_status": Plan({**some, "now": now}, key="idx_batch", reads=22, groups=7),
        "unused_coupons": Plan({**some, "after": "", "now": first, "limit": 10}, key="idx_batch", reads=22),
        "still_unused": Plan({"keys": [*coupons], "now": first}, reads=count),
        "recall_batch": Plan({**batch, "last_seq": 1, "last_hash": bytes(32)}),
        "get_recall": Plan(batch),
        "running_recalls": Plan({"limit": 100}, key="idx_recall", reads=filled.per_shard("batch") * SHARDS // 50 + 101),
        "recall_parts": Plan({"keys": batches}, reads=count),
        "lock_part": Plan(batch),
        "store_part": Plan(
            {
                **batch,
                "after_coupon_id": "",
                "voided_coupons": 1,
                "voided_minor": 1,
                "begin_time": None,
                "complete_time": now,
            }
        ),
        "finish_recall": Plan(batch),
        "end_recall": Plan({**batch, "now": now}),
        "hold_shards": Plan({"shards": sorted({shard for shard, _ in coupons})}, reads=count),
        "hold_accounts": Plan({"users": users}, reads=count),
        "account_statuses": Plan({"users": users}, reads=count),
        "recorded_requests": Plan({"keys": records}, reads=count),
        "lock_coupons": Plan({"keys": coupons}, reads=count),
        "get_coupons": Plan({"keys": coupons}, reads=count),
        "coupon_facts": Plan({"keys": coupons}, reads=count),
        "find_codes": Plan({"keys": codes}, reads=count),
        "update_coupons": Plan(
            rows=[(*key, 1, Decimal("99.00"), 3, 2, bytes(32)) for key in coupons],
            # Each row is looked at to find it and again to change it.
            reads=2 * count,
        ),
        "bind_coupon": Plan({**one, "user_id": 1, "bound_coupon_id": coupon_id(1, 1), "bound_by": bytes(32)}),
        "lock_stored": Plan(one),
        "list_coupons": Plan(
            {"user_id": shard + SHARDS, "shard": shard, "statuses": [1, 2, 3, 4, 5, 6], "below": "~", "limit": 51},
            key="idx_user_status",
            # All coupons of that user are read, status by status, since ids are no part of the index.
            reads=filled.per_shard("coupon_info") // 50 + 6,
        ),
        # Which months a coupon has rows of is not known: each of the 15 partitions is asked.
        "journal": Plan({**one, "above_seq": 0, "limit": 100}, reads=15),
        "get_transaction": Plan({"shard": shard, "transaction_id": f"TX20260101{coupon_id(shard, number)}"}),
        "transactions_of_request": Plan({"request_id": f"{number:012d}", "caller": "till-1"}, key="idx_request"),
        "transactions_of_order": Plan(
            {"merchant_id": "m-1", "order_id": "o-1"},
            key="idx_merchant_order",
        ),
        "drop_code": Plan({"shard": shard, "key_id": "k1", "code_hmac": codes[0][2], "made_by": b"m" * 32}),
        "lock_counter": Plan(counter),
        "advance_counter": Plan(counter),
        "get_terms": Plan({"shard": shard, "terms_id": batch["batch_id"]}),
        "get_batch": Plan(batch),
        "lock_batch": Plan(batch),
        "set_block_scope": Plan({**batch, "block_scope": 1, "last_seq": 1, "last_hash": bytes(32)}),
        "count_draw": Plan({**batch, "quantity": 1}),
        "get_draw": Plan({**batch, "caller": "ops", "request_id": "r"}),
        "purge_records": Plan({"now": now, "limit": 10}, key="idx_expire", reads=11),
    }
    return known[name]


OF_MANY_KEYS = [
    "hold_shards",
    "hold_accounts",
    "account_statuses",
    "recorded_requests",
    "lock_coupons",
    "get_coupons",
    "coupon_facts",
    "find_codes",
    "update_coupons",
    "uses",
    "lock_uses",
    "lock_slices",
    "spend_slices",
    "return_to_slices",
    "still_due",
    "still_unused",
    "recall_parts",
]
OF_ONE_KEY = [
    "bind_coupon",
    "lock_stored",
    "list_coupons",
    "journal",
    "get_transaction",
    "transactions_of_request",
    "transactions_of_order",
    "drop_code",
    "lock_counter",
    "advance_counter",
    "get_terms",
    "get_batch",
    "lock_batch",
    "set_block_scope",
    "count_draw",
    "get_draw",
    "purge_records",
    "lock_account",
    "store_account",
    "delete_use",
    "get_slice",
    "raise_slice",
    "granted",
    "count_grant",
    "ungranted",
    "due_coupons",
    "count_by_status",
    "unused_coupons",
    "recall_batch",
    "get_recall",
    "running_recalls",
    "lock_part",
    "store_part",
    "finish_recall",
    "end_recall",
]
APPENDS = {
    "insert_accounts",
    "insert_records",
    "insert_coupons",
    "insert_journal",
    "insert_outbox",
    "insert_transactions",
    "insert_codes",
    "note_imported_lengths",
    "ensure_counter",
    "insert_terms",
    "insert_batch",
    "insert_draw",
    "insert_uses",
    "add_slice",
    "grant",
    "insert_recall",
    "add_part",
}
READS_A_SMALL_TABLE_WHOLE = {"imported_lengths"}


def test_every_statement_is_planned_or_needs_no_plan() -> None:
    listed = [*OF_MANY_KEYS, *OF_ONE_KEY, *APPENDS, *READS_A_SMALL_TABLE_WHOLE]
    assert sorted(listed) == sorted(QUERIES)
    for name in APPENDS:
        assert QUERIES[name].lstrip().startswith("INSERT INTO"), f"{name} only appends"
        assert "SELECT" not in QUERIES[name]
    for name in READS_A_SMALL_TABLE_WHOLE:
        assert not any(word in QUERIES[name] for word in ("FOR UPDATE", "SHARE MODE")), f"{name} locks nothing"


def test_no_statement_ignores_errors_or_uses_what_only_one_server_knows() -> None:
    for name, sql in QUERIES.items():
        for word in ("INSERT IGNORE", "FOR SHARE", "RETURNING", "SKIP LOCKED", "REPLACE INTO"):
            assert word not in sql.upper(), f"{name} says {word}"


def test_a_list_of_keys_is_a_row_constructor_with_its_index_forced() -> None:
    # With both columns in an IN of their own the server scans the table; how it plans a list of rows it decides by
    # itself, and not on each version as it does here.
    for name in set(OF_MANY_KEYS) - {"hold_shards", "update_coupons", "spend_slices", "return_to_slices"}:
        assert re.search(r"WHERE \(shard, \w+(, \w+)?\) IN %\(", QUERIES[name]), name
        assert "FORCE INDEX (PRIMARY)" in QUERIES[name], name
    assert "coupon_info c FORCE INDEX (PRIMARY)" in QUERIES["update_coupons"]
    assert "spend_slice s FORCE INDEX (PRIMARY)" in QUERIES["spend_slices"]


def test_rows_are_locked_in_the_order_of_their_keys() -> None:
    for name, sql in QUERIES.items():
        if re.search(r"FOR UPDATE|SHARE MODE", sql) and "IN %(" in sql:
            assert re.search(
                r"ORDER BY shard(, (coupon_id|user_id|user_id, batch_id|batch_id))? (FOR UPDATE|LOCK IN SHARE MODE)",
                sql,
            ), name


@pytest.mark.parametrize("count", [1, 2, 10, LIST])
@pytest.mark.parametrize("name", OF_MANY_KEYS)
async def test_a_list_of_keys_is_found_by_key_and_nothing_else_is_read(filled: Filled, name: str, count: int) -> None:
    count = min(count, filled.rows)
    await assert_planned(filled, name, count)


@pytest.mark.parametrize("name", OF_ONE_KEY)
async def test_a_single_key_is_found_by_key_and_nothing_else_is_read(filled: Filled, name: str) -> None:
    async with filled.database.snapshot(timeout_s=10) as session:
        await session.execute("INSERT INTO code_counter VALUES (5, 12, 0) ON DUPLICATE KEY UPDATE next_counter = 0")
    await assert_planned(filled, name, 1)


async def assert_planned(filled: Filled, name: str, count: int) -> None:
    plan = plans(filled, name, count)
    statement = plan.statement(name)
    async with filled.database.snapshot(timeout_s=10) as tx:
        for step in await explained(tx, statement, plan.params):
            # Who wants every row of a small table may as well read the key from end to end.
            assert step["type"] in FOUND_BY_KEY or (step["type"] == "index" and count >= FEW == filled.rows), (
                f"{name} scans: {step}"
            )
            assert step["key"] == plan.key, f"{name} uses another key: {step}"
        before = await rows_read(tx)
        await tx.execute("START TRANSACTION")
        if statement.lstrip().startswith("SELECT"):
            found = len(await tx.fetch_all(statement, plan.params))
        else:
            found = await tx.execute(statement, plan.params)
        await tx.execute("ROLLBACK")
        after = await rows_read(tx)
    assert found > 0, "the parameters are those of rows that exist"
    scanned = after["Handler_read_rnd_next"] - before["Handler_read_rnd_next"]
    # A joined update passes through the rows that were sent along, and through the list of rows it then changes.
    passed = 2 * (len(plan.rows) + 1) if plan.rows else plan.groups
    assert scanned <= passed, "no stored table is scanned"
    looked_up = sum(after[kind] - before[kind] for kind in after) - scanned
    assert looked_up <= 2 * plan.reads + 2, f"{name} looked at {looked_up} rows for {count} keys"


async def explained(tx: Transaction, statement: str, params: Mapping[str, object]) -> list[dict[str, Any]]:
    """The steps of a plan that look at stored tables."""
    columns = ("id", "select_type", "table", "type", "possible_keys", "key", "key_len", "ref", "rows", "extra")
    steps = [dict(zip(columns, row, strict=True)) for row in await tx.fetch_all(f"EXPLAIN {statement}", params)]
    return [step for step in steps if step["table"] and not step["table"].startswith("<") and step["type"]]


async def rows_read(tx: Transaction) -> Counter[str]:
    return Counter(
        {name: int(value) for name, value in await tx.fetch_all("SHOW SESSION STATUS LIKE 'Handler_read_%%'")}
    )


async def test_sessions_read_what_is_committed_are_strict_and_in_utc(filled: Filled) -> None:
    async with filled.database.transaction(timeout_s=5) as tx:
        rows = await tx.fetch_all(
            "SHOW SESSION VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation', 'sql_mode', "
            "'time_zone', 'innodb_lock_wait_timeout', 'autocommit', 'binlog_format')"
        )
    variables = dict(rows)
    assert variables.get("transaction_isolation", variables.get("tx_isolation")) == "READ-COMMITTED"
    assert "STRICT_ALL_TABLES" in variables["sql_mode"].split(",")
    assert variables["time_zone"] == "+00:00"
    assert variables["binlog_format"] == "ROW"
    assert int(variables["innodb_lock_wait_timeout"]) <= 3
