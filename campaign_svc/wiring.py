"""Owns the composition of campaign_svc: the only place that builds its real adapters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from campaign_svc.config import CampaignConfig
from meshkit.migrations import migrate, seed_shard_owner
from meshkit.mysql import Databases
from meshkit.server import ServiceBinding, StartRefusedError
from meshkit.shard_map import ShardMap
from meshkit.telemetry import Telemetry


@asynccontextmanager
async def build(config: CampaignConfig, telemetry: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    """Brings the schema up to date; there is no gRPC service besides health and reflection yet.

    Raises:
        StartRefusedError: No shard map says where the schema is.
        DatabaseError: A database is away.
    """
    del telemetry
    if config.shard_map_file is None:
        raise StartRefusedError("CAMPAIGN_SHARD_MAP_FILE is not set, so the service has no database")
    shard_map = ShardMap.parse(config.shard_map_file.read_text(encoding="utf-8"))
    async with Databases.open(shard_map) as databases:
        for database in databases.all:
            await migrate(database, "campaign_svc")
            await seed_shard_owner(database, database.shards)
        yield []
