"""How MariaDB runs the statements of refunds: by the index meant for each, with few rows and with many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from coupon_svc.adapters.mysql_rows import yuan
from coupon_svc.domain.times import utc_datetime
from meshkit.migrations import migrate
from meshkit.mysql import Database, Databases, ShardMap, ShardRange
from meshkit.queries import load_queries
from meshkit.sql_literals import render_rows
from tests.harness.stack import PrivateStack

QUERIES = load_queries("coupon_svc", "sql/refunds.sql")
NOW = utc_datetime(1_800_000_000_000)
TRANSACTIONS = ["TX5", "TX50", "TX500"]
REFUNDS = [(5, "RX5"), (50, "RX50")]
ORDER = {"merchant_id": "m", "order_id": "o-5"}

# For each statement its parameters, and the index it is to use on each of its tables.
STATEMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "transactions_of_order": ({**ORDER, "limit": 101}, ["idx_merchant_order"]),
    "given_back": ({"transaction_ids": TRANSACTIONS}, ["idx_original_transaction"]),
    "paid_lines": ({"keys": [(5, "TX5"), (50, "TX50")]}, ["PRIMARY"]),
    "order_amounts": ({"keys": [(5, "till-5", "r-0"), (50, "till-50", "r-0")]}, ["PRIMARY"]),
    "refunded_lines": ({"transaction_ids": TRANSACTIONS}, ["idx_original_transaction"]),
    "refunded_cash": ({**ORDER, "shard": 5}, ["idx_merchant_order", "PRIMARY"]),
    "ended_from": ({"shard": 5, "coupon_id": f"{5:019d}"}, ["PRIMARY"]),
    "refunds_of_transaction": ({"transaction_id": "TX5", "limit": 100}, ["idx_original_transaction"]),
    "refunds_of_request": ({"caller": "till-5", "request_id": "q-5"}, ["idx_request"]),
    "get_refunds": ({"keys": REFUNDS}, ["PRIMARY"]),
    "get_refund_coupons": ({"keys": REFUNDS}, ["PRIMARY"]),
    "get_refund_lines": ({"keys": REFUNDS}, ["PRIMARY"]),
}
FEW_ROWS = 60

NUMBERS = "FROM (SELECT seq AS n FROM seq_1_to_{rows}) numbers"
FILL = (
    "INSERT INTO coupon_transaction SELECT n % 128, CONCAT('TX', n), LPAD(n, 19, '0'), n, 'm', CONCAT('o-', n), 10, "
    f"10, 0, 0, 'till', CONCAT('q-', n), '2026-01-01', '', NULL {NUMBERS}",
    "INSERT INTO coupon_journal (shard, coupon_id, seq, month, kind, status_before, status_after, user_id, "
    "merchant_id, order_id, amount_minor, order_amount_minor, deduction_minor, balance_after_minor, transaction_id, "
    "original_transaction_id, settlement_held, caller, request_id, trace_id, event_time, key_id, prev_hash, hash) "
    "SELECT n % 128, LPAD(n, 19, '0'), 2, 202601, 9, 3, 3, n, 'm', 'o', 1, -1, -1, 1, CONCAT('RX', n), "
    f"CONCAT('TX', n), 0, 'till', 'q', '', '2026-01-01', 'k', REPEAT('h', 32), REPEAT('h', 32) {NUMBERS}",
    f"INSERT INTO transaction_line SELECT n % 128, CONCAT('TX', n), 0, 'a', 10, 10 {NUMBERS}",
    "INSERT INTO refund SELECT n % 128, CONCAT('RX', n), 'm', CONCAT('o-', n), 'till', CONCAT('q-', n), '2026-01-01' "
    f"{NUMBERS}",
    f"INSERT INTO refund_coupon SELECT n % 128, CONCAT('RX', n), CONCAT('TX', n), LPAD(n, 19, '0'), 1, NULL {NUMBERS}",
    f"INSERT INTO refund_line SELECT n % 128, CONCAT('RX', n), 0, 'a', CONCAT('TX', n), 1 {NUMBERS}",
    f"INSERT INTO refund_line SELECT n % 128, CONCAT('RX', n), 1, 'a', '', 1 {NUMBERS}",
    "INSERT INTO reservation SELECT n % 128, CONCAT('till-', n % 128), CONCAT('r-', n DIV 128), 2, n, 'm', "
    "CONCAT('o-', n), 100, '[]', 0, REPEAT('h', 32), '', REPEAT('0', 32), '', '2030-01-01', '2026-01-01', '2026-01-01' "
    f"{NUMBERS}",
    "ANALYZE TABLE coupon_transaction, coupon_journal, transaction_line, refund, refund_coupon, refund_line",
    "ANALYZE TABLE reservation",
)


@pytest.fixture(scope="module", params=[1_000, 20_000])
async def filled(stores: PrivateStack, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A database of its own with this many refunds."""
    with stores.mariadb.scratch_database() as dsn:
        async with Databases.open(ShardMap.of([ShardRange(0, 127, dsn)])) as databases:
            database = databases.all[0]
            await migrate(database, "coupon_svc")
            async with database.snapshot(timeout_s=60) as tx:
                for statement in FILL:
                    await tx.fetch_all(statement.replace("{rows}", str(request.param)).replace("%", "%%"))
            yield database


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_statement_finds_its_rows_by_index(filled: Database, name: str) -> None:
    params, indexes = STATEMENTS[name]
    async with filled.snapshot(timeout_s=10) as tx:
        plan = await tx.fetch_all(f"EXPLAIN {QUERIES[name]}", params)
    # Columns of EXPLAIN: id, select_type, table, type, possible_keys, key, key_len, ref, rows, Extra.
    assert [row[5] for row in plan] == indexes
    for row in plan:
        assert row[3] in {"const", "ref", "range"}
        assert int(row[8]) <= FEW_ROWS


async def test_refunded_coupons_are_stored_by_their_primary_key(filled: Database) -> None:
    rows = [(shard, f"{shard:019d}", 1, yuan(100), 3, 2, bytes(32), NOW) for shard in (5, 50)]
    async with filled.snapshot(timeout_s=10) as tx:
        plan = await tx.fetch_all(f"EXPLAIN {render_rows(QUERIES['store_refunded'], rows, None)}".replace("%", "%%"))
    (coupons,) = [row for row in plan if row[2] == "c"]
    assert (coupons[3], coupons[5]) in {("eq_ref", "PRIMARY"), ("ref", "PRIMARY")}


async def test_the_migration_can_be_run_again_after_it_stopped_half_way(filled: Database) -> None:
    async with filled.snapshot(timeout_s=10) as tx:
        await tx.execute("DELETE FROM schema_migration WHERE name LIKE '0003%%'")
    assert await migrate(filled, "coupon_svc") == ["0003_pre_refunds.sql"]
