"""Says which service's shards lie in which database, publishes that, and brings the schemas up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshctl.edge.certificates import write_private
from meshctl.stack.failures import StackError
from meshctl.stack.layout import Layout
from meshctl.stack.mariadb import MariaDB
from meshctl.stack.services import NAMES
from meshctl.stack.zookeeper import ROOT
from meshkit.migrations import MigrationError, migrate, seed_shard_owner
from meshkit.mysql import Databases
from meshkit.mysql_errors import DatabaseError
from meshkit.shard_map import Dsn, ShardMap, ShardMapError, ShardRange
from meshkit.zk import NodeAlreadyExists, VersionConflict, ZooKeeper, ZooKeeperError

# Two coupon databases, so that what crosses a shard boundary in production does so here as well.
_RANGES = {
    "coupon": ((0, 63, "coupon_0"), (64, 127, "coupon_1")),
    "risk": ((0, 127, "risk_0"),),
    "settle": ((0, 127, "settle_0"),),
    "campaign": ((0, 127, "campaign_0"),),
}
_PUBLISH_TIMEOUT_S = 10.0
_MIGRATE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was done to one database: the files applied now, by name."""

    service: str
    database: str
    applied: tuple[str, ...]


def first_map(service: str, mariadb: MariaDB) -> ShardMap:
    """The shard map that a service begins with."""
    return ShardMap.of([ShardRange(first, last, mariadb.dsn(name)) for first, last, name in _RANGES[service]])


def node(service: str) -> str:
    """Where a service's shard map lies in ZooKeeper."""
    return f"{ROOT}/shardmap/{service}"


async def publish(layout: Layout, mariadb: MariaDB, zookeeper: str) -> dict[str, ShardMap]:
    """Publishes each service's shard map where there is none, and writes the files that stand in for ZooKeeper.

    A published map wins, since shards may have moved. Only the address and the password of this stack's own server
    are brought up to date in it: its port may be another one than last time.

    Returns:
        The maps now in force, by service.

    Raises:
        StackError: ZooKeeper is away, or holds something that is no shard map.
    """
    maps: dict[str, ShardMap] = {}
    try:
        async with asyncio.timeout(_PUBLISH_TIMEOUT_S), ZooKeeper(zookeeper) as client:
            await client.ensure_path(f"{ROOT}/shardmap")
            for service in NAMES:
                maps[service] = await _publish(client, node(service), first_map(service, mariadb))
    except (ZooKeeperError, TimeoutError) as error:
        raise StackError(f"the shard maps cannot be published in ZooKeeper: {error}") from error
    except ShardMapError as error:
        raise StackError(f"ZooKeeper holds a shard map that cannot be used: {error}") from error
    for service, shard_map in maps.items():
        write_private(layout.shard_map(service), shard_map.to_json().encode())
    return maps


async def _publish(client: ZooKeeper, path: str, wanted: ShardMap) -> ShardMap:
    text = wanted.to_json().encode()
    found = await client.find(path)
    if found is None:
        try:
            await client.create(path, text)
        except NodeAlreadyExists as error:
            raise StackError(f"{path} was created by someone else meanwhile; start again") from error
        return wanted
    published = ShardMap.parse(found.data.decode())
    own = {Dsn.parse(entry.dsn).database: entry.dsn for entry in wanted.ranges}
    current = ShardMap.of(
        [replace(entry, dsn=own.get(Dsn.parse(entry.dsn).database, entry.dsn)) for entry in published.ranges]
    )
    if current != published:
        try:
            await client.set(path, current.to_json().encode(), version=found.version)
        except VersionConflict as error:
            raise StackError(f"{path} was changed by someone else meanwhile; start again") from error
    return current


def read_maps(layout: Layout) -> dict[str, ShardMap]:
    """The maps that `publish` wrote.

    Raises:
        StackError: the stack was never started here.
    """
    maps: dict[str, ShardMap] = {}
    for service in NAMES:
        path = layout.shard_map(service)
        try:
            maps[service] = ShardMap.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StackError(f"cannot read {path}: {error.strerror}; was the stack ever started here?") from error
        except ShardMapError as error:
            raise StackError(f"{path} is no shard map: {error}") from error
    return maps


async def migrate_all(maps: dict[str, ShardMap]) -> list[Migrated]:
    """Applies the migrations of each service to every database of its map, and gives every shard its owner row.

    Raises:
        StackError: one failed; says which.
    """
    try:
        async with asyncio.timeout(_MIGRATE_TIMEOUT_S):
            done = await asyncio.gather(*(_migrate_service(service, maps[service]) for service in maps))
    except (MigrationError, DatabaseError) as error:
        raise StackError(f"a migration failed: {error}") from error
    except TimeoutError as error:
        raise StackError(f"the migrations took longer than {_MIGRATE_TIMEOUT_S:g} s") from error
    return [entry for entries in done for entry in entries]


async def _migrate_service(service: str, shard_map: ShardMap) -> Sequence[Migrated]:
    package = f"{service}_svc"
    done: list[Migrated] = []
    async with Databases.open(shard_map, pool_size=2) as databases:
        for database in databases.all:
            applied = await migrate(database, package, timeout_s=_MIGRATE_TIMEOUT_S)
            await seed_shard_owner(database, database.shards)
            done.append(Migrated(service, database.schema, tuple(applied)))
    return done
