"""Renders Envoy's configuration from its one template and the contract, and writes what Envoy reads."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from meshctl.edge.certificates import ensure_certificate, write_private
from meshctl.edge.contract import Contract
from meshctl.edge.scripts import edge_scripts
from meshctl.edge.tokens import AUDIENCE, ISSUER, DevKeys

_ROOT = Path(__file__).resolve().parents[2]
_TEMPLATES = _ROOT / "envoy"
_DESCRIPTOR_SET = _ROOT / "gen" / "couponmesh.binpb"
_VALIDATE_TIMEOUT_S = 60
_SOCKET_PATH_MAX_BYTES = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """What one Envoy is told.

    Attributes:
        host: address the listener binds.
        port: port the listener binds.
        coupon: replicas of coupon_svc, each "host:port", at least one.
        risk: replicas of risk_svc, likewise.
        certificate: PEM certificate (chain) of the listener.
        private_key: PEM private key of the listener.
        jwks: JSON Web Key Set that tokens are checked with.
        admin_socket: unix socket of Envoy's administration, mode 0600; at most 107 bytes long.
        descriptor_set: the contract with all imports.
        access_log: file for one JSON line per request; None logs none.
        body_max_bytes: largest REST request body; beyond it 413.
        reply_max_bytes: largest REST reply, and how much of one connection Envoy holds in memory.
        rate_limit_per_s: requests per second and client address.
        rate_limit_burst: how many of them may come at once.
        rate_limit_addresses_max: client addresses that are remembered.
        route_timeout_s: how long a call may take in all.
        request_timeout_s: how long a client may take to send its request.
        connections_max: client connections at once.
        streams_max: calls at once on one HTTP/2 connection.
        upstream_requests_max: calls at once to one service.
    """

    port: int
    coupon: tuple[str, ...]
    risk: tuple[str, ...]
    certificate: Path
    private_key: Path
    jwks: Path
    admin_socket: Path
    host: str = "127.0.0.1"
    descriptor_set: Path = _DESCRIPTOR_SET
    access_log: Path | None = None
    body_max_bytes: int = 262_144
    reply_max_bytes: int = 4_194_304
    rate_limit_per_s: int = 20_000
    rate_limit_burst: int = 40_000
    rate_limit_addresses_max: int = 65_536
    route_timeout_s: float = 10.0
    request_timeout_s: float = 30.0
    connections_max: int = 10_000
    streams_max: int = 1_024
    upstream_requests_max: int = 16_384

    @classmethod
    def under(cls, mesh: Path, *, port: int, coupon: Sequence[str], risk: Sequence[str], **others: Any) -> EdgeSettings:
        """Settings whose files lie where the local stack keeps them.

        Args:
            mesh: the stack's folder, `.mesh`.
            port: port of the listener.
            coupon: replicas of coupon_svc, each "host:port".
            risk: replicas of risk_svc, likewise.
            **others: any other setting by name.
        """
        certificate = ensure_certificate(mesh / "certs")
        return cls(
            port=port,
            coupon=tuple(coupon),
            risk=tuple(risk),
            certificate=certificate.chain,
            private_key=certificate.private_key,
            jwks=mesh / "keys" / "jwks.json",
            admin_socket=mesh / "run" / "envoy-admin.sock",
            **others,
        )


def contract(descriptor_set: Path = _DESCRIPTOR_SET) -> Contract:
    """The contract that the edge serves."""
    return Contract.load(descriptor_set)


def render(settings: EdgeSettings) -> str:
    """Envoy's configuration as YAML; reads the contract and the scripts, writes nothing.

    Raises:
        ValueError: an endpoint is not "host:port", the socket's path is too long, or the contract has something the
            edge does not know.
    """
    if len(os.fsencode(settings.admin_socket)) > _SOCKET_PATH_MAX_BYTES:
        raise ValueError(f"{settings.admin_socket} is longer than a unix socket's path may be")
    served = contract(settings.descriptor_set)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # The output is YAML, whose values pass through the `yaml` filter; HTML escapes would corrupt it.
        autoescape=False,  # noqa: S701
    )
    environment.filters["yaml"] = _yaml
    scripts = edge_scripts(served, _TEMPLATES / "lua")
    return environment.get_template("envoy.yaml.j2").render(
        settings=settings,
        services=list(served.services),
        method_stats=[{"name": name, "method_names": methods} for name, methods in served.methods().items()],
        scripts=scripts,
        issuer=ISSUER,
        audience=AUDIENCE,
        clusters=[
            _cluster("coupon", "/couponmesh.coupon.v1.", settings.coupon),
            _cluster("risk", "/couponmesh.risk.v1.", settings.risk),
        ],
    )


def write_edge(mesh: Path, settings: EdgeSettings) -> Path:
    """Writes the JSON Web Key Set and `envoy/envoy.yaml` under `mesh`, ready for Envoy to be started with.

    Args:
        mesh: the stack's folder, `.mesh`.
        settings: normally `EdgeSettings.under(mesh, …)`, which also makes the certificate when needed.

    Returns:
        The path of the configuration: start Envoy with `command(path)`.
    """
    settings.admin_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(settings.jwks, DevKeys(settings.jwks.parent).jwks().encode())
    path = mesh / "envoy" / "envoy.yaml"
    write_private(path, render(settings).encode())
    return path


def command(envoy: Path, configuration: Path, *, threads: int = 2) -> list[str]:
    """The command line that runs Envoy: `envoy` is the program, `configuration` what `write_edge` gave."""
    # Hot restart shares memory under a name that two stacks on one machine would fight for.
    own = ["--disable-hot-restart", "--concurrency", str(threads), "-l", "warning", "--file-flush-interval-msec", "500"]
    return [str(envoy), "-c", str(configuration), *own]


def validate(envoy: Path, configuration: Path) -> None:
    """Has Envoy itself check a configuration.

    Raises:
        ValueError: it is refused; the message is Envoy's.
    """
    done = subprocess.run(
        [str(envoy), "--mode", "validate", "-c", str(configuration), "-l", "error"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_VALIDATE_TIMEOUT_S,
    )
    if done.returncode != 0:
        # Envoy repeats the whole configuration after its complaint.
        complaint = (done.stderr or done.stdout).partition("): {")[0]
        raise ValueError(f"Envoy refuses {configuration}:\n{complaint}")


def _yaml(value: Any) -> str:
    """A value as JSON, which is YAML."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _cluster(name: str, prefix: str, endpoints: Sequence[str]) -> dict[str, Any]:
    if not endpoints:
        raise ValueError(f"{name} needs at least one endpoint")
    pairs = [_host_and_port(endpoint) for endpoint in endpoints]
    return {
        "name": name,
        "prefix": prefix,
        "endpoints": pairs,
        "discovery": "STATIC" if all(_is_address(host) for host, _ in pairs) else "STRICT_DNS",
    }


def _host_and_port(endpoint: str) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"an endpoint is host:port, not {endpoint!r}")
    return host.strip("[]"), int(port)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
