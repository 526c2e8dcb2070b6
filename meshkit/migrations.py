"""Brings a database's schema up to date from a package's numbered .sql files."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import resources
from typing import Literal, Protocol

from meshkit.mysql import DatabaseUnavailable, Deadlock, DuplicateKey, Transaction
from meshkit.queries import load_queries

Phase = Literal["pre", "post"]

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<phase>pre|post)_[a-z0-9_]+\.sql")
# What the splitter must see whole: quoted text, comments, and the semicolon that ends a statement.
_TOKEN = re.compile(
    r"""
      '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`]|``)*` | /\*[!+].*?\*/
    | (?P<comment> --(?=\s|\Z)[^\n]* | \#[^\n]* | /\*.*?\*/ )
    | (?P<open> ['"`] | /\* )
    | (?P<end> ; )
    """,
    re.VERBOSE | re.DOTALL,
)
_SEED_ATTEMPTS = 3


class MigrationError(Exception):
    """Migrations that can't be applied; the message names the database or the file, and why."""


class MigratableDatabase(Protocol):
    """What a migration needs of `meshkit.mysql.Database`."""

    @property
    def name(self) -> str:
        """Address and schema, for messages."""

    @property
    def schema(self) -> str:
        """The schema's name, for the lock."""

    def snapshot(self, *, timeout_s: float) -> AbstractAsyncContextManager[Transaction]:
        """One connection in autocommit."""

    def transaction(self, *, timeout_s: float) -> AbstractAsyncContextManager[Transaction]:
        """One transaction."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name, when it runs relative to the code that needs it, and its text."""

    name: str
    phase: Phase
    text: str

    @property
    def checksum(self) -> bytes:
        """SHA-256 of the text, 32 bytes."""
        return hashlib.sha256(self.text.encode()).digest()


async def migrate(
    database: MigratableDatabase,
    package: str,
    folder: str = "sql/migrations",
    *,
    phase: Phase | None = None,
    timeout_s: float = 120.0,
) -> list[str]:
    """Applies the files that a database doesn't have yet, in the order of their numbers.

    A file is `NNNN_pre_name.sql` (before the code that needs it is deployed) or `NNNN_post_name.sql` (after the code
    that needed the old form is gone). DDL commits by itself, so a runner that dies half-way leaves a file half
    applied and not recorded: the next run applies it again from its start, for which every statement must be
    repeatable (CREATE TABLE IF NOT EXISTS …). Two runners at once take turns.

    Args:
        database: Where to.
        package: The package that holds the files.
        folder: Their folder inside the package.
        phase: Only the files of one phase; all when None.
        timeout_s: Limit for everything, the wait for another runner included.

    Returns:
        The names of the files applied now.

    Raises:
        MigrationError: A name is malformed, a number is used twice, an applied file was changed, or another runner
            holds the lock until the end of the time.
        DatabaseError: A statement failed.
    """
    migrations = load_migrations(package, folder)
    queries = load_queries("meshkit", "sql/migrations.sql")
    # The server's locks are shared by all its schemas, and their names have at most 64 characters.
    lock = f"migrate.{hashlib.sha256(database.schema.encode()).hexdigest()[:32]}"
    async with database.snapshot(timeout_s=timeout_s) as session:
        held = await session.fetch_one(queries["acquire_lock"], {"lock": lock, "wait_s": max(1, int(timeout_s) - 1)})
        if held != (1,):
            raise MigrationError(f"{database.name}: another runner still migrates it")
        try:
            return await _apply_pending(session, queries, migrations, phase)
        finally:
            # The connection may go back to its pool, which would keep the lock; a lost one has let go of it already.
            with contextlib.suppress(DatabaseUnavailable):
                await session.fetch_one(queries["release_lock"], {"lock": lock})


async def seed_shard_owner(database: MigratableDatabase, shards: Sequence[int] | frozenset[int]) -> list[int]:
    """Gives each shard that has no row in shard_owner one at epoch 1, owned; existing rows stay as they are.

    Args:
        database: A migrated database.
        shards: The shards that the shard map gives it.

    Returns:
        The shards that got a row now.
    """
    queries = load_queries("meshkit", "sql/migrations.sql")
    for attempt in range(1, _SEED_ATTEMPTS + 1):
        try:
            async with database.transaction(timeout_s=10.0) as transaction:
                present = {shard for (shard,) in await transaction.fetch_all(queries["owned_shards"])}
                missing = sorted(set(shards) - present)
                if missing:
                    await transaction.insert_many(queries["insert_shard_owner"], [(shard,) for shard in missing])
        except (DuplicateKey, Deadlock):
            # Another runner was faster; what it seeded is seen at the next attempt.
            if attempt == _SEED_ATTEMPTS:
                raise
        else:
            return missing
    raise AssertionError("unreachable: the last attempt returned or raised")


def load_migrations(package: str, folder: str = "sql/migrations") -> list[Migration]:
    """Reads a package's migrations in the order of their numbers.

    Raises:
        MigrationError: There are none, a name is malformed, or a number is used twice.
    """
    files = [file for file in resources.files(package).joinpath(folder).iterdir() if file.name.endswith(".sql")]
    return order_migrations({file.name: file.read_text(encoding="utf-8") for file in files}, source=package)


def order_migrations(texts: Mapping[str, str], *, source: str) -> list[Migration]:
    """Checks file names and sorts; `source` names the package in errors (see `load_migrations`)."""
    if not texts:
        raise MigrationError(f"{source} has no migrations")
    migrations: dict[str, Migration] = {}
    for name in sorted(texts):
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            raise MigrationError(f"{source}: {name} is not named NNNN_pre_name.sql or NNNN_post_name.sql")
        number = match["number"]
        if number in migrations:
            raise MigrationError(f"{source}: {migrations[number].name} and {name} have the same number")
        migrations[number] = Migration(name, "pre" if match["phase"] == "pre" else "post", texts[name])
    return list(migrations.values())


def split_statements(text: str) -> Iterator[str]:
    """Splits SQL text at the semicolons that end statements, and leaves out comments.

    Semicolons inside quotes and comments end nothing; executable comments (`/*!` and `/*+`) are kept. DELIMITER and
    compound statements aren't understood.

    Raises:
        MigrationError: A quote or a comment isn't closed.
    """
    statement = ""
    position = 0
    for token in _TOKEN.finditer(text):
        statement += text[position : token.start()]
        position = token.end()
        if token["open"]:
            line = text.count("\n", 0, token.start()) + 1
            raise MigrationError(f"what {token['open']!r} opens in line {line} is never closed")
        if token["end"]:
            if statement.strip():
                yield statement.strip()
            statement = ""
        elif token["comment"]:
            # A comment separates words as a space does.
            statement += " "
        else:
            statement += token[0]
    statement += text[position:]
    if statement.strip():
        yield statement.strip()


async def _apply_pending(
    session: Transaction, queries: Mapping[str, str], migrations: Sequence[Migration], phase: Phase | None
) -> list[str]:
    await session.execute(queries["create_schema_migration"])
    applied = dict(await session.fetch_all(queries["applied"]))
    _refuse_changed(migrations, applied)
    pending = [
        migration for migration in migrations if migration.name not in applied and phase in {None, migration.phase}
    ]
    for migration in pending:
        for statement in split_statements(migration.text):
            await session.execute(statement.replace("%", "%%"))
        await session.execute(queries["record"], {"name": migration.name, "checksum": migration.checksum})
    return [migration.name for migration in pending]


def _refuse_changed(migrations: Sequence[Migration], applied: Mapping[str, bytes]) -> None:
    for migration in migrations:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it was applied: write a new file instead")
