"""How MariaDB runs the statements of reservations: by the index meant for each, with few rows and with many."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coupon_svc.domain.times import utc_datetime
from meshkit.migrations import migrate
from meshkit.mysql import Database, Databases, ShardMap, ShardRange
from meshkit.queries import load_queries
from tests.harness.stack import PrivateStack

QUERIES = {**load_queries("coupon_svc"), **load_queries("coupon_svc", "sql/reservations.sql")}
NOW = utc_datetime(1_800_000_000_000)
KEYS = [(shard, f"till-{shard}", f"r-{number}") for shard in (3, 4) for number in (5, 50)]
COUPONS = [(shard, f"{number:019d}", 1) for shard in (3, 4) for number in (5, 50)]

# For each statement its parameters, the index it is to use, and about how many rows it may look at.
STATEMENTS: dict[str, tuple[dict[str, object], str, int | None]] = {
    "get_reservation": (dict(zip(("shard", "caller", "reservation_id"), KEYS[0], strict=True)), "PRIMARY", 1),
    "lock_reservations": ({"keys": KEYS}, "PRIMARY", 8),
    "owners_of_reservations": ({"keys": KEYS}, "PRIMARY", 8),
    "holds_of_reservations": ({"keys": KEYS}, "PRIMARY", 8),
    "unreleased_holds": ({"keys": COUPONS}, "idx_coupon", 8),
    "expired_reservations": ({"now": NOW, "limit": 50}, "idx_state_expire", None),
    "transactions_made_by": ({"shard": 3, "caller": "till-3", "request_id": "q-5"}, "idx_request", 8),
    "given_back_of": ({"shard": 3, "transaction_ids": ["TX1", "TX2"]}, "idx_original_transaction", 40),
}

FILL = (
    "INSERT INTO reservation SELECT n % 128, CONCAT('till-', n % 128), CONCAT('r-', n DIV 128), 1 + n % 4, n, 'm', "
    "CONCAT('o-', n), 100, '[]', 0, REPEAT('h', 32), '', REPEAT('0', 32), '', '2030-01-01', '2026-01-01', '2026-01-01' "
    "FROM (SELECT seq AS n FROM seq_1_to_{rows}) numbers",
    "INSERT INTO coupon_hold SELECT n % 128, CONCAT('till-', n % 128), CONCAT('r-', n DIV 128), 0, "
    "LPAD(n DIV 128, 19, '0'), 1 + n % 3, 100, 10, 10, NULL, '2030-01-01' "
    "FROM (SELECT seq AS n FROM seq_1_to_{rows}) numbers",
    "INSERT INTO coupon_transaction (shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, "
    "deduction_minor, balance_after_minor, settlement_held, caller, request_id, consume_time) "
    "SELECT n % 128, CONCAT('TX', n), LPAD(n, 19, '0'), n, 'm', CONCAT('o-', n), 10, "
    "10, 0, 0, CONCAT('till-', n % 128), CONCAT('q-', n DIV 128), '2026-01-01' "
    "FROM (SELECT seq AS n FROM seq_1_to_{rows}) numbers",
    "ANALYZE TABLE reservation, coupon_hold, coupon_transaction",
)


@pytest.fixture(scope="module", params=[1_000, 50_000])
async def filled(stores: PrivateStack, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A database of its own with this many reservations."""
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
    params, index, at_most = STATEMENTS[name]
    async with filled.snapshot(timeout_s=10) as tx:
        plan = await tx.fetch_all(f"EXPLAIN {QUERIES[name]}", params)
    # Columns of EXPLAIN: id, select_type, table, type, possible_keys, key, key_len, ref, rows, Extra.
    ((_, _, _, access, _, key, _, _, rows, _),) = plan
    assert key == index
    assert access in {"const", "ref", "range"}
    assert at_most is None or int(rows) <= at_most


async def test_the_migration_can_be_run_again_after_it_stopped_half_way(filled: Database) -> None:
    async with filled.snapshot(timeout_s=10) as tx:
        await tx.execute("DELETE FROM schema_migration WHERE name LIKE '0002%%'")
    assert await migrate(filled, "coupon_svc") == ["0002_pre_reservations.sql"]
