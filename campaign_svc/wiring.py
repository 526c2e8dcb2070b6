"""Owns the composition of campaign_svc: the only place that builds its real adapters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from campaign_svc.config import CampaignConfig
from meshkit.placement import open_placed
from meshkit.server import ServiceBinding
from meshkit.telemetry import Telemetry


@asynccontextmanager
async def build(config: CampaignConfig, telemetry: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    """Brings the schema up to date; there is no gRPC service besides health and reflection yet.

    Raises:
        StartRefusedError: No shard map says where the schema is.
        DatabaseError: A database is away.
    """
    del telemetry
    async with open_placed(config, "campaign"):
        yield []
