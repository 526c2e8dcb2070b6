"""The schema of a coupon database."""

from __future__ import annotations

from meshkit.migrations import load_migrations, migrate, split_statements
from meshkit.mysql import Databases, ShardMap, ShardRange, Transaction
from tests.harness.stack import PrivateStack


async def shape(tx: Transaction) -> list[tuple[object, ...]]:
    """Every column and every key."""
    columns = await tx.fetch_all(
        "SELECT table_name, column_name, column_type, is_nullable, column_default, generation_expression "
        "FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY table_name, ordinal_position"
    )
    keys = await tx.fetch_all(
        "SELECT table_name, index_name, seq_in_index, column_name FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() ORDER BY table_name, index_name, seq_in_index"
    )
    return [*columns, *keys]


async def test_every_migration_may_be_cut_short_and_run_again_from_its_start(stores: PrivateStack) -> None:
    with stores.mariadb.scratch_database() as dsn:
        async with Databases.open(ShardMap.of([ShardRange(0, 127, dsn)]), pool_size=1) as databases:
            (database,) = databases.all
            await migrate(database, "coupon_svc")
            async with database.snapshot(timeout_s=60) as tx:
                before = await shape(tx)
                for migration in load_migrations("coupon_svc"):
                    for statement in split_statements(migration.text):
                        await tx.execute(statement.replace("%", "%%"))
                assert await shape(tx) == before
