import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshkit.shard_map import ShardMap, ShardRange
from tests.integration.private_mariadb import PrivateMariaDB, running_mariadb
from tests.integration.service_process import SERVING, health_of, service_process

SERVICES = ["settle", "campaign"]


@pytest.fixture(scope="module")
async def mariadb(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PrivateMariaDB]:
    async with running_mariadb(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.mark.parametrize("name", SERVICES)
async def test_the_service_owns_an_empty_schema_is_healthy_and_may_be_started_again(
    mariadb: PrivateMariaDB, tmp_path: Path, name: str
) -> None:
    schema = f"{name}_0"
    shard_map = tmp_path / "shard-map.json"
    shard_map.write_text(ShardMap((ShardRange(0, 127, await mariadb.create(schema)),)).to_json())
    prefix = name.upper()
    variables = {
        f"{prefix}_LISTEN": "127.0.0.1:0",
        f"{prefix}_METRICS_LISTEN": "127.0.0.1:0",
        f"{prefix}_SHARD_MAP_FILE": str(shard_map),
        f"{prefix}_DRAIN_S": "0",
    }
    for _ in range(2):
        async with service_process(f"{name}_svc", **variables) as service:
            port = (await service.until("service_serving"))["port"]
            assert await health_of(port, "") == SERVING
            tables = await mariadb.administer(f"SHOW TABLES FROM {schema}")
            assert sorted(str(table) for (table,) in tables) == ["schema_migration", "shard_owner"]
            owned = await mariadb.administer(f"SELECT COUNT(*), MIN(epoch), MAX(epoch) FROM {schema}.shard_owner")
            assert owned == [(128, 1, 1)]
            service.process.send_signal(signal.SIGTERM)
            await service.until("service_stopped")
            assert await service.exit_status() == 0
