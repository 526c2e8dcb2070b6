"""The stack's Envoy: the edge's configuration for this stack's addresses, and whether its listener is live."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from meshctl.edge.render import EdgeSettings, command, write_edge
from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady, StackError
from meshctl.stack.layout import Layout
from meshctl.stack.packages import Programs

_THREADS = 2
_ANSWER_TIMEOUT_S = 1.0


class Envoy(Component):
    """An Envoy of the stack's own, in front of all replicas."""

    def __init__(
        self, layout: Layout, port: int, programs: Programs | None, *, coupon: Sequence[str], risk: Sequence[str]
    ) -> None:
        """As any component.

        Args:
            layout: the stack's files.
            port: port of the HTTPS listener.
            programs: what is installed; None for an Envoy that is only looked at.
            coupon: replicas of coupon_svc, each "host:port".
            risk: replicas of risk_svc, likewise.
        """
        super().__init__("envoy", layout)
        self.port = port
        self._programs = programs
        self._coupon = tuple(coupon)
        self._risk = tuple(risk)

    @property
    def endpoint(self) -> str:
        """The address of REST and native gRPC."""
        return f"https://localhost:{self.port}"

    @property
    def authority(self) -> Path:
        """The certificate that clients must trust."""
        return self.layout.mesh / "certs" / "ca.pem"

    def prepare(self) -> None:
        """Renders its configuration; makes certificate and keys at the first start."""
        settings = EdgeSettings.under(
            self.layout.mesh,
            port=self.port,
            coupon=self._coupon,
            risk=self._risk,
            access_log=self.layout.logs / "access.log",
        )
        try:
            write_edge(self.layout.mesh, settings)
        except ValueError as error:
            raise StackError(f"Envoy's configuration cannot be rendered: {error}") from error
        # A socket that a killed Envoy left behind would keep the new one from binding.
        settings.admin_socket.unlink(missing_ok=True)

    def command(self) -> Command:
        """Envoy with the rendered configuration."""
        assert self._programs is not None, "a component that is only looked at is not started"
        return Command(command(self._programs.envoy, self.layout.mesh / "envoy" / "envoy.yaml", threads=_THREADS))

    def check(self) -> None:
        """Asks its administration, which says LIVE once all listeners and clusters are set up."""
        answer = self.ask_admin("/ready")
        if not answer.startswith("LIVE"):
            raise NotReady(answer.strip() or "no answer")

    def ask_admin(self, path: str) -> str:
        """What the administration answers to a GET.

        Raises:
            NotReady: it is not there.
        """
        connection = _UnixConnection(self.layout.run / "envoy-admin.sock")
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise NotReady(str(error) or type(error).__name__) from error
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=_ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_TIMEOUT_S)
        self.sock.connect(str(self._path))
