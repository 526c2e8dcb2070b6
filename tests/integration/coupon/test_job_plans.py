"""Every statement of jobs, imports and exports finds its rows by a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from meshkit.migrations import migrate
from meshkit.mysql import Database, Databases, ShardMap, ShardRange
from meshkit.queries import load_queries
from meshkit.sql_literals import render_rows
from tests.harness.stack import PrivateStack
from tests.integration.coupon.test_sql_plans import FOUND_BY_KEY, explained

QUERIES = load_queries("coupon_svc", "sql/jobs.sql")
SHARDS = 128
ROWS = 20_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Row number n of each table lies in shard n MOD 128 and belongs to the job, batch or coupon of that number.
_ID = "LPAD(seq, 19, '0')"
_FILLED = {
    "job": f"seq MOD 128, {_ID}, 1, 1 + (seq MOD 50 > 0), 3, 0, {_ID}, 0, CONCAT('c-', seq MOD 500), 'r', "
    "REPEAT('h', 32), REPEAT('0', 32), 1, 0, '', 0, REPEAT('l', 16), '2026-01-01', 0, '2026-01-01', NULL",
    "job_lines": f"seq MOD 128, {_ID}, 0, 'x'",
    "job_coupons": f"seq MOD 128, {_ID}, 0, 'x'",
    "job_line_error": f"seq MOD 128, {_ID}, 1, 'code', 'R', 'p'",
    "import_gate": "seq MOD 128, UNHEX(LPAD(HEX(seq), 64, '0')), 1, '2026-01-01'",
    "activation_mark": f"seq MOD 128, {_ID}, '2026-01-01' + INTERVAL seq MINUTE",
    "code_export": f"seq MOD 128, {_ID}, 1, NULL, 'c', 's', '', 0, 1, '', '', REPEAT('0', 32), '2026-01-01', 'k1', "
    "REPEAT('h', 32), REPEAT('h', 32)",
    "code_index": f"seq MOD 128, 'k1', UNHEX(LPAD(HEX(seq), 64, '0')), {_ID}, REPEAT('1', 19), REPEAT('m', 32)",
    "batch_draw": f"seq MOD 128, {_ID}, 'c', 'r', REPEAT('h', 32), 1, '2026-01-01'",
    "request_record": "seq MOD 128, 'c', LPAD(seq, 12, '0'), REPEAT('h', 32), 'x', '2026-01-01', '2026-01-01'",
    "coupon_info (shard, coupon_id, user_id, balance, status, batch_id, terms_id, expires_at, version, last_hash, "
    "code_sealed, create_time)": f"seq MOD 128, {_ID}, 0, 0, 1, LPAD(seq MOD 20, 19, '0'), REPEAT('2', 19), "
    "'2099-01-01', 1, REPEAT('h', 32), '', '2026-01-01'",
}


class Plan(NamedTuple):
    """How a statement must find its rows."""

    params: Mapping[str, object]
    key: str = "PRIMARY"
    rows: Sequence[tuple[object, ...]] = ()


_NUMBER = 12_345
_JOB = {"shard": _NUMBER % SHARDS, "job_id": f"{_NUMBER:019d}"}
_HELD = {**_JOB, "holder": b"l" * 16, "lease_ms": 1_000}
_BATCH = {"shard": _NUMBER % SHARDS, "batch_id": f"{_NUMBER:019d}"}
_CODES = [(number % SHARDS, "k1", number.to_bytes(32, "big"), b"m" * 32) for number in range(1, 20_000, 200)]
PLANS = {
    "count_open_jobs": Plan({"caller": "c-1", "shard": 1, "limit": 20}, "idx_caller"),
    "get_job": Plan(_JOB),
    "due_jobs": Plan({"direct": 0, "limit": 5}, "idx_due"),
    "take_job": Plan(_HELD),
    "advance_job": Plan({**_HELD, "phase": 3, "done_count": 1}),
    "note_chunk_done": Plan({**_HELD, "done_count": 1}),
    "let_job_go": Plan({**_HELD, "retry_in_ms": 1}),
    "begin_undo": Plan({**_HELD, "error": "", "line_error_count": 0}),
    "finish_job": Plan({**_HELD, "state": 2, "done_count": 1, "finish_time": NOW}),
    "drop_job_lines": Plan(_JOB),
    "forget_request": Plan({"shard": 57, "caller": "c", "request_id": f"{_NUMBER:012d}"}),
    "job_lines": Plan({**_JOB, "chunk": 0}),
    "done_chunks": Plan(_JOB),
    "job_coupons": Plan({**_JOB, "first_chunk": 0, "limit": 3}),
    "line_errors": Plan({**_JOB, "above_line": 0, "limit": 3}),
    "hold_gates": Plan({"keys": [(shard, number) for shard, _, number, _ in _CODES]}),
    "purge_gates": Plan({"before": NOW, "limit": 1_000}, "idx_change"),
    "drop_claims": Plan({}, rows=_CODES),
    "lower_draw": Plan({**_BATCH, "caller": "c", "request_id": "r", "kept": 0}),
    "code_counters": Plan({"shards": [1, 2, 3], "code_length": 8}),
    "delete_mark": Plan({"shard": _NUMBER % SHARDS, "coupon_id": f"{_NUMBER:019d}"}),
    "old_marks": Plan({"before": NOW, "limit": 100}, "idx_time"),
    "batch_coupons_of_shard": Plan(
        {"shard": 7, "batch_id": f"{7:019d}", "above": f"{0:019d}", "limit": 10}, "idx_batch"
    ),
    "batch_coupons_of_shards": Plan({"shards": [*range(64)], "batch_id": f"{7:019d}", "limit": 10}, "idx_batch"),
    "last_export": Plan(_BATCH),
}
APPENDS = {
    "insert_job",
    "insert_job_lines",
    "insert_job_coupons",
    "insert_line_errors",
    "ensure_gates",
    "set_gates",
    "insert_mark",
    "insert_export",
}


@pytest.fixture(scope="module")
async def filled(stores: PrivateStack) -> AsyncIterator[Database]:
    async with AsyncExitStack() as stack:
        dsn = stack.enter_context(stores.mariadb.scratch_database())
        shard_map = ShardMap.of([ShardRange(0, SHARDS - 1, dsn)])
        (database,) = (await stack.enter_async_context(Databases.open(shard_map, pool_size=1))).all
        await migrate(database, "coupon_svc")
        async with database.snapshot(timeout_s=60) as session:
            for table, values in _FILLED.items():
                await session.execute(f"INSERT INTO {table} SELECT {values} FROM seq_1_to_{ROWS}")
                await session.fetch_all(f"ANALYZE TABLE {table.split()[0]}")
            await session.execute("INSERT INTO code_counter SELECT seq, 8, 0 FROM seq_0_to_127")
        yield database


def test_every_statement_is_planned_or_only_appends() -> None:
    assert sorted([*PLANS, *APPENDS]) == sorted(QUERIES)
    for name in APPENDS:
        assert QUERIES[name].startswith("INSERT INTO"), f"{name} only appends"


@pytest.mark.parametrize("name", PLANS)
async def test_a_statement_finds_its_rows_by_key(filled: Database, name: str) -> None:
    plan = PLANS[name]
    statement = QUERIES[name]
    if plan.rows:
        statement = render_rows(statement, plan.rows, plan.params).replace("%", "%%")
    async with filled.snapshot(timeout_s=10) as tx:
        steps: list[dict[str, Any]] = await explained(tx, statement, plan.params)
        assert steps, "the plan looks at a stored table"
        for step in steps:
            assert step["type"] in FOUND_BY_KEY, f"{name} scans: {step}"
            assert step["key"] == plan.key, f"{name} uses another key: {step}"
            assert "filesort" not in (step["extra"] or ""), f"{name} sorts: {step}"
