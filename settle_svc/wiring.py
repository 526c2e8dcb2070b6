"""Owns the composition of settle_svc: the only place that builds its real adapters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from meshkit.placement import open_placed
from meshkit.server import ServiceBinding
from meshkit.telemetry import Telemetry
from settle_svc.config import SettleConfig


@asynccontextmanager
async def build(config: SettleConfig, telemetry: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    """Brings the schema up to date; there is no gRPC service besides health and reflection yet.

    Raises:
        StartRefusedError: No shard map says where the schema is.
        DatabaseError: A database is away.
    """
    del telemetry
    async with open_placed(config, "settle"):
        yield []
