"""Migrations against a real MariaDB: order, repetition, two at once, killed half-way."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshkit.migrations import MigrationError, migrate, seed_shard_owner
from meshkit.mysql import Database, Databases, ShardMap, ShardRange, StatementRefused
from tests.integration.private_mariadb import PrivateMariaDB, running_mariadb

SCHEMA = "mesh_0"
CREATE_NOTES = "CREATE TABLE IF NOT EXISTS notes (text VARCHAR(99) NOT NULL DEFAULT '100%; sure') -- a; remark\n;"
NOTE = "INSERT INTO notes VALUES ('{}');"
CREATE_OWNERS = """
CREATE TABLE IF NOT EXISTS shard_owner (
  shard SMALLINT UNSIGNED NOT NULL, epoch BIGINT UNSIGNED NOT NULL, state TINYINT UNSIGNED NOT NULL, PRIMARY KEY (shard)
);
"""
RUNNER = """
import asyncio, sys
from meshkit.migrations import migrate
from meshkit.mysql import Databases, ShardMap, ShardRange

async def main() -> None:
    async with Databases.open(ShardMap.of([ShardRange(0, 127, sys.argv[1])])) as databases:
        print(*await migrate(databases.all[0], sys.argv[2], timeout_s=30))

asyncio.run(main())
"""

MakePackage = Callable[[Mapping[str, str]], str]


@pytest.fixture(scope="module")
async def mariadb(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PrivateMariaDB]:
    async with running_mariadb(tmp_path_factory.mktemp("migrations")) as server:
        yield server


@pytest.fixture
async def dsn(mariadb: PrivateMariaDB) -> str:
    return await mariadb.create(SCHEMA)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    async with Databases.open(ShardMap.of([ShardRange(0, 127, dsn)])) as databases:
        yield databases.all[0]


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with opened(dsn) as database:
        yield database


_numbers = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePackage:
    """Makes a package that holds the given migration files, each time under a new name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(files: Mapping[str, str]) -> str:
        name = f"migrated_{next(_numbers)}"
        folder = tmp_path / name / "sql" / "migrations"
        folder.mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return name

    return make


async def notes(mariadb: PrivateMariaDB) -> list[object]:
    return [text for (text,) in await mariadb.administer(f"SELECT text FROM {SCHEMA}.notes")]


async def recorded(mariadb: PrivateMariaDB) -> list[object]:
    return [name for (name,) in await mariadb.administer(f"SELECT name FROM {SCHEMA}.schema_migration ORDER BY name")]


async def test_files_are_applied_once_in_the_order_of_their_numbers(
    mariadb: PrivateMariaDB, database: Database, package: MakePackage
) -> None:
    files = {"0002_pre_b.sql": NOTE.format("b"), "0001_pre_a.sql": CREATE_NOTES + "INSERT INTO notes VALUES ();"}
    assert await migrate(database, package(files)) == ["0001_pre_a.sql", "0002_pre_b.sql"]
    later = package({**files, "0003_post_c.sql": NOTE.format("c")})
    assert await migrate(database, later) == ["0003_post_c.sql"]
    assert await migrate(database, later) == []
    assert await notes(mariadb) == ["100%; sure", "b", "c"]
    assert await recorded(mariadb) == ["0001_pre_a.sql", "0002_pre_b.sql", "0003_post_c.sql"]


async def test_a_phase_leaves_the_other_ones_files_for_later(
    mariadb: PrivateMariaDB, database: Database, package: MakePackage
) -> None:
    name = package(
        {
            "0001_pre_a.sql": CREATE_NOTES + NOTE.format("a"),
            "0002_post_b.sql": NOTE.format("b"),
            "0003_pre_c.sql": NOTE.format("c"),
        }
    )
    assert await migrate(database, name, phase="pre") == ["0001_pre_a.sql", "0003_pre_c.sql"]
    assert await migrate(database, name, phase="post") == ["0002_post_b.sql"]
    assert await notes(mariadb) == ["a", "c", "b"]


async def test_a_changed_file_is_refused_and_nothing_new_is_applied(
    mariadb: PrivateMariaDB, database: Database, package: MakePackage
) -> None:
    await migrate(database, package({"0001_pre_a.sql": CREATE_NOTES}))
    changed = package({"0001_pre_a.sql": CREATE_NOTES + " ", "0002_pre_b.sql": NOTE.format("b")})
    with pytest.raises(MigrationError, match=r"0001_pre_a\.sql was changed after it was applied"):
        await migrate(database, changed)
    assert await notes(mariadb) == []
    assert await migrate(database, package({"0001_pre_a.sql": CREATE_NOTES})) == [], "the lock was kept"


async def test_a_file_that_fails_is_not_recorded_and_the_lock_is_free(
    mariadb: PrivateMariaDB, dsn: str, database: Database, package: MakePackage
) -> None:
    with pytest.raises(StatementRefused):
        await migrate(database, package({"0001_pre_a.sql": CREATE_NOTES, "0002_pre_b.sql": "SELECT nonsense;"}))
    assert await recorded(mariadb) == ["0001_pre_a.sql"]
    mended = package({"0001_pre_a.sql": CREATE_NOTES, "0002_pre_b.sql": NOTE.format("b")})
    async with opened(dsn) as other:
        assert await migrate(other, mended, timeout_s=3) == ["0002_pre_b.sql"]


async def test_two_runners_at_once_apply_each_file_once(
    mariadb: PrivateMariaDB, dsn: str, database: Database, package: MakePackage
) -> None:
    name = package({"0001_pre_a.sql": CREATE_NOTES + "DO GET_LOCK('gate', 60);" + NOTE.format("a")})
    async with opened(dsn) as other, database.snapshot(timeout_s=60) as gate:
        assert await gate.fetch_one("SELECT GET_LOCK('gate', 0)") == (1,)
        runners = [asyncio.create_task(migrate(runner, name)) for runner in (database, other)]
        await until_running(mariadb, "DO GET_LOCK(''gate''%")
        await until_running(mariadb, "SELECT GET_LOCK(''migrate%")
        await gate.fetch_one("SELECT RELEASE_LOCK('gate')")
        applied = await asyncio.gather(*runners)
    assert sorted(applied) == [[], ["0001_pre_a.sql"]]
    assert await notes(mariadb) == ["a"]


async def test_a_runner_that_never_gets_the_lock_says_so(
    mariadb: PrivateMariaDB, dsn: str, database: Database, package: MakePackage
) -> None:
    slow = asyncio.create_task(migrate(database, package({"0001_pre_a.sql": "DO SLEEP(20);"}), timeout_s=25))
    await until_running(mariadb, "DO SLEEP%")
    async with opened(dsn) as other:
        with pytest.raises(MigrationError, match="another runner"):
            await migrate(other, package({"0001_pre_a.sql": CREATE_NOTES}), timeout_s=2)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_runner_killed_half_way_is_made_good_by_the_next_run(
    mariadb: PrivateMariaDB, dsn: str, database: Database, package: MakePackage
) -> None:
    gated = CREATE_NOTES + "DO GET_LOCK('gate', 60);CREATE TABLE IF NOT EXISTS late (a INT);" + NOTE.format("a")
    name = package({"0001_pre_a.sql": gated})
    async with database.snapshot(timeout_s=60) as gate:
        assert await gate.fetch_one("SELECT GET_LOCK('gate', 0)") == (1,)
        runner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RUNNER, dsn, name, env={"PYTHONPATH": ":".join(filter(None, sys.path))}
        )
        await until_running(mariadb, "DO GET_LOCK(''gate''%")
        runner.kill()
        await runner.wait()
        tables = await gate.fetch_all("SHOW TABLES")
        assert tables == [("notes",), ("schema_migration",)], "the runner wasn't stopped half-way"
        assert await gate.fetch_all("SELECT name FROM schema_migration") == []
        await gate.fetch_one("SELECT RELEASE_LOCK('gate')")
    async with opened(dsn) as other:
        assert await migrate(other, name, timeout_s=30) == ["0001_pre_a.sql"]
    assert await notes(mariadb) == ["a"]


async def until_running(mariadb: PrivateMariaDB, info: str) -> None:
    query = f"SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '{info}' AND user <> 'root'"
    async with asyncio.timeout(20):
        while await mariadb.administer(query) != [(1,)]:  # noqa: ASYNC110 - what is waited for is in the server
            await asyncio.sleep(0.01)


async def test_each_shard_gets_its_owner_row_once_and_existing_rows_stay(
    mariadb: PrivateMariaDB, dsn: str, database: Database, package: MakePackage
) -> None:
    await migrate(database, package({"0001_pre_a.sql": CREATE_OWNERS}))
    await mariadb.administer(f"INSERT INTO {SCHEMA}.shard_owner (shard, epoch, state) VALUES (3, 7, 2)")
    async with opened(dsn) as other:
        seeded = await asyncio.gather(
            *(seed_shard_owner(runner, range(64)) for runner in (database, other, database, other))
        )
    assert sorted(itertools.chain(*seeded)) == [shard for shard in range(64) if shard != 3]
    assert await seed_shard_owner(database, range(65)) == [64]
    rows = await mariadb.administer(f"SELECT shard, epoch, state FROM {SCHEMA}.shard_owner ORDER BY shard")
    assert rows == [(shard, 7, 2) if shard == 3 else (shard, 1, 1) for shard in range(65)]


async def test_an_owner_row_that_another_runner_adds_meanwhile_is_left_to_it(
    mariadb: PrivateMariaDB, database: Database, package: MakePackage
) -> None:
    await migrate(database, package({"0001_pre_a.sql": CREATE_OWNERS}))
    async with database.transaction(timeout_s=20) as other:
        await other.execute("INSERT INTO shard_owner (shard, epoch, state) VALUES (5, 9, 1)")
        seeding = asyncio.create_task(seed_shard_owner(database, range(8)))
        await until_running(mariadb, "INSERT INTO shard_owner%")
    assert await seeding == [0, 1, 2, 3, 4, 6, 7]
    assert await mariadb.administer(f"SELECT epoch FROM {SCHEMA}.shard_owner WHERE shard = 5") == [(9,)]
