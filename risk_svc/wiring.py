"""Owns the composition of risk_svc: the only place that builds its real adapters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from couponmesh.risk.v1.risk_service_pb2_grpc import add_RiskServiceServicer_to_server
from meshkit.crypto import Keyring
from meshkit.redis_client import open_redis
from meshkit.server import ServiceBinding
from meshkit.telemetry import Telemetry
from risk_svc.adapters.prometheus_observer import PrometheusObserver
from risk_svc.adapters.redis_windows import RedisWindows
from risk_svc.app.assess_batch import AssessBatch
from risk_svc.config import RiskConfig
from risk_svc.servicer import RiskServicer


@asynccontextmanager
async def build(config: RiskConfig, telemetry: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    """Builds the service and closes what it opened.

    It starts without Redis too: until the windows are back, AssessBatch answers WINDOWS_UNAVAILABLE.
    """
    timeout_s = config.redis_timeout_ms / 1000
    redis = open_redis(config.redis_windows_url.get_secret_value(), timeout_s=timeout_s)
    try:
        observer = PrometheusObserver(telemetry)
        windows = RedisWindows(
            redis,
            Keyring.parse(config.keyring.get_secret_value()),
            replay_ttl_ms=config.replay_ttl_s * 1000,
            observer=observer,
        )
        assess_batch = AssessBatch(config.rules(), windows, observer, windows_timeout_s=timeout_s)
        yield [
            ServiceBinding(
                full_name="couponmesh.risk.v1.RiskService",
                register=add_RiskServiceServicer_to_server,
                servicer=RiskServicer(assess_batch),
            )
        ]
    finally:
        await redis.aclose()
