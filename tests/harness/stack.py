"""A private stack of real processes for tests, over the same code as `meshctl up`.

Fixtures (tests/conftest.py), all of session scope, so that a whole run shares one stack:

    stores        MariaDB, Redis and ZooKeeper with all schemas migrated; no services (about 2 s)
    stack         the same stack, whole: two coupon_svc, risk_svc, settle_svc, campaign_svc and Envoy (about 3 s more)
    own_stack     a function that starts another stack with settings of the test's own (replicas, variables)

A test that harms a component puts it right before it ends, and waits until the stack serves again; one that leaves it
dead or frozen fails, and the component is put right for the next test:

    async def test_consumes_go_on_without_redis(stack):
        stack.redis.kill()                    # SIGKILL; also: stop(), freeze(), thaw(), `with stack.redis.frozen():`
        try:
            ...
        finally:
            await stack.redis.start()         # same port, same data
            await stack.wait_until_serving()

`kill`, `freeze` and `thaw` act at once; what takes time (`start`, `stop`, `restart`, `wait_ready`) is awaited and
leaves the event loop free, so that a stream of calls goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pymysql
from prometheus_client.parser import text_string_to_metric_families

from meshctl.edge.tokens import Claims, DevKeys
from meshctl.stack.component import Component
from meshctl.stack.envoy import Envoy
from meshctl.stack.failures import NotReady
from meshctl.stack.mariadb import MariaDBSizes
from meshctl.stack.process import is_frozen
from meshctl.stack.services import Service
from meshctl.stack.stack import LocalStack, StackSettings
from meshkit.shard_map import Dsn, ShardMap

SIZES = MariaDBSizes(buffer_pool_mib=64, redo_log_mib=16)
SERVING_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.05
_QUERY_TIMEOUT_S = 10
_REAPER = 'read -r _; "$0" -P -m meshctl down --dir "$1" >/dev/null 2>&1 && rm -rf "$1"'


class Handle:
    """One component of a private stack, by its process."""

    def __init__(self, stack: LocalStack, component: Component) -> None:
        self._stack = stack
        self._component = component

    @property
    def name(self) -> str:
        """Its name in logs and state, such as "mariadb" or "coupon-2"."""
        return self._component.name

    @property
    def endpoint(self) -> str:
        """Where it listens, "127.0.0.1:port"; the same after a restart."""
        return self._component.endpoint

    @property
    def log(self) -> Path:
        """Its output, all of its starts in one file."""
        return self._component.log

    @property
    def pid(self) -> int:
        """Its process id."""
        process = self._component.process
        assert process is not None, f"{self.name} was never started"
        return process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._component.is_running

    def is_up(self) -> bool:
        """Whether it runs and serves (a real query, gRPC health); False within about a second for a frozen one."""
        if not self.is_running:
            return False
        try:
            self._component.check()
        except NotReady:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._component.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._component.freeze()

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self._component.thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Frozen while the block runs."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    async def start(self, **settings: str) -> None:
        """Starts it on its port and data, and waits until it serves.

        Args:
            **settings: for a service, variables that win from now on, such as COUPON_RISK_DEADLINE_MS="5".
        """
        if settings:
            assert isinstance(self._component, Service), f"{self.name} reads no variables"
            self._component.settings.update(settings)
        await asyncio.to_thread(self._stack.start_one, self._component)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it takes too long; returns when it is gone."""
        await asyncio.to_thread(self._component.stop)

    async def restart(self, **settings: str) -> None:
        """`stop`, then `start`."""
        await self.stop()
        await self.start(**settings)

    async def wait_ready(self, timeout_s: float = SERVING_TIMEOUT_S) -> None:
        """Waits until it serves, after `thaw` for example."""
        await asyncio.to_thread(self._component.wait_ready, timeout_s=timeout_s)


class MariaDBHandle(Handle):
    """MariaDB, with a way in for root."""

    def administer(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements as root and returns the last one's rows; blocks."""
        return self._stack.mariadb.administer(*statements)

    @contextmanager
    def scratch_database(self) -> Iterator[str]:
        """The DSN of an empty database of the test's own, dropped in the end."""
        name = f"scratch_{uuid.uuid4().hex[:12]}"
        dsn = self._stack.mariadb.dsn(name)
        account = Dsn.parse(dsn).user
        self.administer(
            f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4",
            f"GRANT ALL ON `{name}`.* TO '{account}'@'127.0.0.1', '{account}'@'localhost'",
        )
        try:
            yield dsn
        finally:
            self.administer(f"DROP DATABASE IF EXISTS `{name}`")


class PrivateStack:
    """A stack in a temporary folder, on free ports, with production's durability and small buffers.

    Attributes:
        mesh: its folder, laid out like `.mesh`.
        mariadb, redis, zookeeper, envoy, risk, settle, campaign: handles of the components.
    """

    def __init__(self, *, replicas: Mapping[str, int] | None = None, settings: Mapping[str, str] | None = None) -> None:
        """Chooses ports and starts nothing.

        Args:
            replicas: processes of a service, such as {"coupon": 2}.
            settings: variables of the services, such as {"COUPON_RISK_DEADLINE_MS": "50"}.
        """
        # A short path of its own: unix sockets have little room, and a stack's folder belongs to one user.
        self.mesh = Path(tempfile.mkdtemp(prefix="mesh-"))
        self.local = LocalStack.plan(
            self.mesh,
            StackSettings(
                replicas=replicas or {}, https_port=None, mariadb=SIZES, service_settings=settings or {}
            ),
        )  # fmt: skip
        # When the tests are killed, their stack goes as well: the reaper's stdin then ends.
        self._reaper = subprocess.Popen(
            ["sh", "-c", _REAPER, sys.executable, str(self.mesh)], stdin=subprocess.PIPE, start_new_session=True
        )
        self.mariadb = MariaDBHandle(self.local, self.local.mariadb)
        self.redis = Handle(self.local, self.local.redis)
        self.zookeeper = Handle(self.local, self.local.zookeeper)
        self.envoy = Handle(self.local, self.local.envoy)
        self.risk = self.service("risk")
        self.settle = self.service("settle")
        self.campaign = self.service("campaign")

    # --- life ---

    def start_stores(self) -> None:
        """Starts MariaDB, Redis and ZooKeeper and migrates; blocks."""
        self.local.start_together(self.local.stores)
        self.local.set_up_databases()

    def start_services(self) -> None:
        """Starts services and Envoy; blocks."""
        self.local.start_together(self.local.services)
        self.local.start_together([self.local.envoy])

    def close(self, *, keep_logs: Path | None = None) -> None:
        """Kills everything and removes the folder.

        Args:
            keep_logs: where to copy the logs first.
        """
        for component in self.local.components:
            component.kill()
        if keep_logs is not None:
            shutil.copytree(self.local.layout.logs, keep_logs / self.mesh.name, dirs_exist_ok=True)
        # Killed before its stdin ends, it does nothing.
        self._reaper.kill()
        self._reaper.wait()
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        shutil.rmtree(self.mesh)

    async def wait_until_serving(self, timeout_s: float = SERVING_TIMEOUT_S) -> None:
        """Waits until every component serves and Envoy counts every replica as healthy."""
        async with asyncio.timeout(timeout_s):
            while (ailing := await asyncio.to_thread(self._ailing)) is not None:
                del ailing
                await asyncio.sleep(_LOOK_EVERY_S)

    def _ailing(self) -> str | None:
        for component in self.local.components:
            if not component.is_running:
                return component.name
        for health in self.local.health():
            if health.state != "ok":
                return health.component
        clusters = self.local.envoy.ask_admin("/clusters")
        flags = [line.rpartition("::")[2] for line in clusters.splitlines() if "::health_flags::" in line]
        return None if flags and all(flag == "healthy" for flag in flags) else Envoy.__name__

    def heal(self) -> list[str]:
        """Thaws what a test left frozen and starts what it left dead; names them. Blocks."""
        harmed = []
        for component in self.local.components:
            if component.process is None:
                continue
            if is_frozen(component.process):
                component.thaw()
            elif component.is_running:
                continue
            else:
                self.local.start_one(component)
            harmed.append(component.name)
        return harmed

    # --- where things are ---

    def service(self, name: str, number: int = 1) -> Handle:
        """The handle of one process of a service, from number 1."""
        return Handle(self.local, self.local.replicas_of(name)[number - 1])

    def coupon(self, number: int = 1) -> Handle:
        """The handle of one coupon_svc, from number 1."""
        return self.service("coupon", number)

    @property
    def coupon_targets(self) -> tuple[str, ...]:
        """Where each coupon_svc listens, without Envoy: plain gRPC, with `identity` as metadata."""
        return tuple(service.endpoint for service in self.local.replicas_of("coupon"))

    @property
    def coupon_target(self) -> str:
        """The first of `coupon_targets`."""
        return self.coupon_targets[0]

    @property
    def risk_target(self) -> str:
        """Where risk_svc listens."""
        return self.risk.endpoint

    @property
    def https_url(self) -> str:
        """Envoy's listener, "https://localhost:port"."""
        return self.local.envoy.endpoint

    @property
    def https_target(self) -> str:
        """The same for native gRPC, "localhost:port"."""
        return self.https_url.removeprefix("https://")

    @property
    def authority(self) -> Path:
        """The certificate that clients of `https_url` must trust."""
        return self.local.envoy.authority

    def redis_url(self, database: int = 0) -> str:
        """The URL of a Redis database: 0 holds locks, 1 risk windows; tests may use 2 to 15."""
        return self.local.redis.url(database)

    @property
    def zookeeper_address(self) -> str:
        """ZooKeeper's "host:port"."""
        return self.local.zookeeper.endpoint

    def shard_map(self, service: str) -> ShardMap:
        """The shard map of a service."""
        return self.local.shard_maps()[service]

    def dsn(self, service: str, shard: int = 0) -> str:
        """The DSN of the database that holds a shard of a service."""
        return next(entry.dsn for entry in self.shard_map(service).ranges if shard in entry.shards)

    # --- callers ---

    def token(
        self,
        role: str = "cashier",
        *,
        merchant: str = "",
        user: str = "",
        client: str = "till-1",
        channel: str = "",
        ttl_s: int = 3600,
    ) -> str:
        """A token that Envoy accepts; `role` may be several, separated by commas."""
        return DevKeys(self.mesh / "keys").token(
            _claims(role, merchant=merchant, user=user, client=client, channel=channel), ttl_s=ttl_s
        )

    @staticmethod
    def identity(
        role: str = "cashier", *, merchant: str = "", user: str = "", client: str = "till-1", channel: str = ""
    ) -> tuple[tuple[str, str], ...]:
        """Metadata for a call straight to a service, as Envoy would set it for `token` of the same arguments."""
        claims = _claims(role, merchant=merchant, user=user, client=client, channel=channel)
        payload = {
            "sub": claims.subject,
            "roles": list(claims.roles),
            "client_id": claims.client_id,
            "merchant_id": claims.merchant_id,
            "channel": claims.channel,
        }
        return (("x-jwt-payload", base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")),)

    def rest(self, token: str = "", **options: Any) -> httpx.AsyncClient:
        """A REST client of Envoy, to be used with `async with`; with a token it is sent on each request."""
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}
        trusted = ssl.create_default_context(cafile=str(self.authority))
        options = {"timeout": 20.0, **options}
        return httpx.AsyncClient(base_url=self.https_url, verify=trusted, headers=headers, **options)

    def edge_channel(self) -> grpc.aio.Channel:
        """A native gRPC channel through Envoy; calls carry ("authorization", f"Bearer {token}")."""
        credentials = grpc.ssl_channel_credentials(self.authority.read_bytes())
        return grpc.aio.secure_channel(self.https_target, credentials)

    def coupon_channel(self, number: int = 1) -> grpc.aio.Channel:
        """A plain channel to one coupon_svc, from number 1; calls carry `identity` as metadata."""
        # Two channels of one process to one address share a connection unless each has a pool of its own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(self.coupon_targets[number - 1], options=options)

    # --- looking inside ---

    async def fetch_all(
        self, service: str, sql: str, params: Mapping[str, object] | None = None, *, shard: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows of a service's databases as committed now: of all of them one after the other, or of one shard's."""
        ranges = self.shard_map(service).ranges
        dsns = dict.fromkeys(entry.dsn for entry in ranges if shard is None or shard in entry.shards)
        found = [await asyncio.to_thread(_query, Dsn.parse(dsn), sql, params) for dsn in dsns]
        return [row for rows in found for row in rows]

    async def metric(self, name: str, service: str = "coupon", **labels: str) -> float:
        """The sum of a Prometheus sample over a service's processes and over labels that are not given.

        Args:
            name: the sample's name, such as "mesh_rpc_seconds_count".
            service: whose.
            **labels: values that must match.
        """
        total = 0.0
        async with httpx.AsyncClient(timeout=5.0) as client:
            for process in self.local.replicas_of(service):
                text = (await client.get(process.metrics_url)).text
                total += sum(
                    sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.name == name and labels.items() <= sample.labels.items()
                )
        return total


def _claims(role: str, *, merchant: str, user: str, client: str, channel: str) -> Claims:
    return Claims(
        subject=user or client,
        roles=tuple(role.split(",")),
        client_id=client,
        merchant_id=merchant,
        channel=channel,
    )


def _query(dsn: Dsn, sql: str, params: Mapping[str, object] | None) -> Sequence[tuple[Any, ...]]:
    with (
        pymysql.connect(
            host=dsn.host,
            port=dsn.port,
            user=dsn.user,
            password=dsn.password,
            database=dsn.database,
            autocommit=True,
            connect_timeout=_QUERY_TIMEOUT_S,
            read_timeout=_QUERY_TIMEOUT_S,
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(sql, params)
        rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
    return rows
