"""A service process whose use case waits for SIGUSR1: `python -m tests.integration.served_process`."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic_settings import SettingsConfigDict

from couponmesh.coupon.v1.cashier_service_pb2 import ConsumeRequest, ConsumeResponse
from meshkit import config, server
from meshkit.config import ServiceConfig
from meshkit.logs import logger
from meshkit.server import ServiceBinding
from meshkit.telemetry import Telemetry
from tests.integration.served import cashier


class ProcessConfig(ServiceConfig):
    model_config = SettingsConfigDict(env_prefix="SERVED_")

    service_name: str = "served"
    slow_start: bool = False


@asynccontextmanager
async def build(configuration: ProcessConfig, _: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    go_on = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go_on.set)

    async def consume(request: ConsumeRequest) -> ConsumeResponse:
        logger("test").info("use_case_entered")
        await go_on.wait()
        return ConsumeResponse(transaction_id=request.order_id)

    logger("test").info("building")
    try:
        if configuration.slow_start:
            await asyncio.Event().wait()
        yield [cashier(consume)]
    finally:
        logger("test").info("resources_closed")


if __name__ == "__main__":
    server.run(config.load(ProcessConfig), build, error_reasons=[])
