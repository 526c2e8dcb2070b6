"""Finds out which databases hold a service's shards, and opens them with their schema up to date."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from meshkit.config import ServiceConfig
from meshkit.migrations import migrate, seed_shard_owner
from meshkit.mysql import Database, Databases
from meshkit.server import StartRefusedError
from meshkit.shard_map import ShardMap, ShardMapError
from meshkit.zk import NodeMissing, ZooKeeper, ZooKeeperUnavailable

# A service that is content with the file does not wait long for ZooKeeper.
_CONNECT_TIMEOUT_S = 1.0


@asynccontextmanager
async def open_placed(config: ServiceConfig, service: str) -> AsyncIterator[Databases]:
    """Opens the databases of a service that needs ZooKeeper for nothing but its shard map.

    Raises:
        StartRefusedError: No shard map says where the schema is.
        DatabaseError: A database is away, so its schema cannot be vouched for.
    """
    zookeeper = ZooKeeper(config.zookeeper)
    # Without ZooKeeper the file decides: reading from a client that never connected finds it unavailable.
    with suppress(ZooKeeperUnavailable):
        await zookeeper.start(timeout_s=_CONNECT_TIMEOUT_S)
    try:
        shard_map = await read_shard_map(zookeeper, config.zookeeper_root, service, config.shard_map_file)
    finally:
        await zookeeper.stop()
    async with open_migrated(shard_map, f"{service}_svc") as databases:
        yield databases


async def read_shard_map(zookeeper: ZooKeeper, root: str, service: str, fallback: Path | None) -> ShardMap:
    """Reads the shard map of a service from `<root>/shardmap/<service>`, or from a file when ZooKeeper has none.

    Raises:
        StartRefusedError: Neither has one, or it is malformed.
    """
    path = f"{root}/shardmap/{service}"
    try:
        text, source = (await zookeeper.get(path)).data.decode(), path
    except (NodeMissing, ZooKeeperUnavailable) as error:
        if fallback is None:
            raise StartRefusedError(f"no shard map: ZooKeeper has no {path}, and no …_SHARD_MAP_FILE is set") from error
        try:
            text, source = await asyncio.to_thread(fallback.read_text, encoding="utf-8"), str(fallback)
        except OSError as missing:
            raise StartRefusedError(f"the shard map {fallback} cannot be read: {missing.strerror}") from missing
    try:
        return ShardMap.parse(text)
    except ShardMapError as error:
        raise StartRefusedError(f"the shard map {source} is malformed: {error}") from error


@asynccontextmanager
async def open_migrated(shard_map: ShardMap, package: str, *, pool_size: int = 8) -> AsyncIterator[Databases]:
    """Opens the databases of a shard map after applying the package's migrations to each of them.

    Raises:
        DatabaseError: A database is away, so its schema cannot be vouched for.
        MigrationError: A migration cannot be applied.
    """
    async with Databases.open(shard_map, pool_size=pool_size) as databases:
        await asyncio.gather(*(_prepare(database, package) for database in databases.all))
        yield databases


async def _prepare(database: Database, package: str) -> None:
    await migrate(database, package)
    await seed_shard_owner(database, database.shards)
