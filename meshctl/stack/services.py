"""The four services of the stack: their processes, their environment and their health."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshctl.edge.certificates import write_private
from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady
from meshctl.stack.layout import Layout
from meshkit.config import ServiceConfig

NAMES = ("coupon", "risk", "settle", "campaign")
_ANSWER_TIMEOUT_S = 1.0
# gRPC would send even loopback calls to an HTTP proxy that the shell names.
_NO_PROXY = {"no_grpc_proxy": "127.0.0.1,localhost"}
# gRPC's core writes lines of its own form to stderr, by default even of connections that end well. It reads the
# variable when it is imported, so a service cannot set it for itself.
_QUIET_GRPC = {"GRPC_VERBOSITY": "ERROR"}


@dataclass(frozen=True, slots=True, repr=False)
class Surroundings:
    """What every service of one stack is told.

    Attributes:
        zookeeper: "host:port".
        zookeeper_root: path under which everything lies.
        risk_target: where coupon_svc finds risk_svc.
        redis_locks_url: for coupon_svc.
        redis_windows_url: for risk_svc.
        code_key: see `Secrets`, like the keyrings.
        code_keyring: likewise.
        audit_keyring: likewise.
        audit_signing_keys: likewise.
        audit_roots: where coupon_svc exports signed roots to.
        risk_keyring: likewise.
    """

    zookeeper: str
    zookeeper_root: str
    risk_target: str
    redis_locks_url: str
    redis_windows_url: str
    code_key: str
    code_keyring: str
    audit_keyring: str
    audit_signing_keys: str
    audit_roots: Path
    risk_keyring: str


class Service(Component):
    """One process of one service."""

    stop_grace_s = 15.0

    def __init__(
        self,
        layout: Layout,
        service: str,
        number: int,
        *,
        port: int,
        metrics_port: int,
        surroundings: Surroundings | None,
        settings: Mapping[str, str],
    ) -> None:
        """As any component.

        Args:
            layout: the stack's files.
            service: "coupon", "risk", "settle" or "campaign".
            number: which replica, from 1.
            port: port of gRPC.
            metrics_port: port of Prometheus metrics over HTTP.
            surroundings: what it is told; None for one that is only looked at.
            settings: environment variables that win over all others; those of other services are left out.
        """
        super().__init__(replica_name(service, number), layout)
        self.service = service
        self.port = port
        self.metrics_port = metrics_port
        self._surroundings = surroundings
        self.settings = dict(settings)

    @property
    def endpoint(self) -> str:
        """Where gRPC listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus metrics are."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def environment(self) -> dict[str, str]:
        """The variables of its configuration; holds keys."""
        told = self._surroundings
        assert told is not None, "a component that is only looked at is not started"
        variables = {
            "LISTEN": self.endpoint,
            "METRICS_LISTEN": f"127.0.0.1:{self.metrics_port}",
            "ZOOKEEPER": told.zookeeper,
            "ZOOKEEPER_ROOT": told.zookeeper_root,
            "SHARD_MAP_FILE": str(self.layout.shard_map(self.service)),
            "LOG_FORMAT": "json",
            # No load balancer needs time to notice here, and Ctrl-C should not feel slow.
            "DRAIN_S": "0.1",
            **_OWN.get(self.service, _nothing)(told),
        }
        prefix = f"{self.service.upper()}_"
        return {
            **{f"{prefix}{name}": value for name, value in variables.items()},
            **{name: value for name, value in self.settings.items() if name.startswith(prefix)},
        }

    def prepare(self) -> None:
        """Writes its environment to a file, with which a person can run it by hand."""
        lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.environment().items())
        module = f"{self.service}_svc"
        header = f"# To run it by hand: set -a; . {self.layout.environment(self.name)}; set +a; python -m {module}\n"
        write_private(self.layout.environment(self.name), (header + lines).encode())

    def command(self) -> Command:
        """The service under this interpreter."""
        # Variables of services in the caller's shell would make two starts differ; `settings` is the way to change one.
        inherited = {name: value for name, value in os.environ.items() if not is_setting(name)}
        # -P: the stack's folder, in which it runs, is no place to import from.
        argv = [sys.executable, "-P", "-m", f"{self.service}_svc"]
        return Command(argv, {**_QUIET_GRPC, **inherited, "PYTHONUNBUFFERED": "1", **_NO_PROXY, **self.environment()})

    def check(self) -> None:
        """Asks gRPC health, which says SERVING once the service took up its work."""
        with grpc.insecure_channel(self.endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=_ANSWER_TIMEOUT_S
                )
            except grpc.RpcError as error:
                raise NotReady(f"{error.code().name}: {error.details()}") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReady(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def replica_name(service: str, number: int) -> str:
    """The component name of a replica: "coupon" for the first, then "coupon-2" and so on."""
    return service if number == 1 else f"{service}-{number}"


def is_setting(name: str) -> bool:
    """Whether a variable belongs to the configuration of a service."""
    return name.startswith(tuple(f"{service.upper()}_" for service in NAMES))


def unknown_settings(names: Iterable[str]) -> list[str]:
    """Those of the variables that no service reads, each with the nearest that is read where there is one."""
    known = {name for service in NAMES for name in _variables(service)}
    unknown = sorted(name for name in names if name.partition("__")[0] not in known)
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.85) for name in unknown}
    return [f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in unknown]


def _variables(service: str) -> set[str]:
    configurations = [
        found
        for found in vars(importlib.import_module(f"{service}_svc.config")).values()
        if isinstance(found, type) and issubclass(found, ServiceConfig) and found is not ServiceConfig
    ]
    prefix = f"{service.upper()}_"
    fields = {f"{prefix}{name.upper()}" for found in configurations for name in found.model_fields}
    return {*fields, f"{prefix}CONFIG_FILE"}


def _nothing(_told: Surroundings) -> dict[str, str]:
    return {}


def _coupon(told: Surroundings) -> dict[str, str]:
    return {
        "REDIS_LOCKS_URL": told.redis_locks_url,
        "RISK_TARGET": told.risk_target,
        # Production gives risk_svc 20 ms. Here seven processes and whoever calls them share a laptop's few cores, and a
        # deadline that short would fail for want of a time slice.
        "RISK_DEADLINE_MS": "250",
        "CODE_KEY": told.code_key,
        "CODE_KEYRING": told.code_keyring,
        "AUDIT_KEYRING": told.audit_keyring,
        "AUDIT_SIGNING_KEYS": told.audit_signing_keys,
        "AUDIT_ROOTS_DIR": str(told.audit_roots),
        # Every local caller is a developer's.
        "TRUSTED_CONTEXT_CLIENTS": json.dumps(["*"]),
    }


def _risk(told: Surroundings) -> dict[str, str]:
    return {"REDIS_WINDOWS_URL": told.redis_windows_url, "KEYRING": told.risk_keyring}


_OWN = {"coupon": _coupon, "risk": _risk}
