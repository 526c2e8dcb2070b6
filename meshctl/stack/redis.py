"""The stack's Redis: one server for locks and risk windows, each in a database of its own."""

from __future__ import annotations

import socket

from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady
from meshctl.stack.layout import Layout
from meshctl.stack.packages import Programs

# Production gives each purpose a server or cluster of its own; here the numbers keep them apart.
LOCKS_DATABASE = 0
RISK_DATABASE = 1
_ANSWER_TIMEOUT_S = 1.0


class Redis(Component):
    """A Redis server of the stack's own."""

    def __init__(self, layout: Layout, port: int, programs: Programs | None, *, memory_max_mib: int = 256) -> None:
        super().__init__("redis", layout)
        self.port = port
        self._programs = programs
        self._memory_max_mib = memory_max_mib

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def url(self, database: int = LOCKS_DATABASE) -> str:
        """The URL of one of its databases."""
        return f"redis://{self.endpoint}/{database}"

    def prepare(self) -> None:
        """Makes its data folder."""
        self.layout.data("redis").mkdir(mode=0o700, exist_ok=True)

    def command(self) -> Command:
        """The server, which writes every change to its log file and never evicts a key."""
        assert self._programs is not None, "a component that is only looked at is not started"
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self.layout.data("redis")),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A lock or a window that was evicted would be wrong, a refused write is only late.
            "maxmemory": f"{self._memory_max_mib}mb",
            "maxmemory-policy": "noeviction",
            "maxclients": "1000",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        return Command([str(self._programs.redis_server), *arguments])

    def check(self) -> None:
        """PING, which a server that still loads its data refuses."""
        answer = ask(self.port, b"PING\r\n")
        if not answer.startswith(b"+PONG"):
            raise NotReady(answer.decode(errors="replace").strip() or "closed the connection")


def ask(port: int, question: bytes) -> bytes:
    """Sends a question to a loopback port and gives the first bytes of the answer.

    Raises:
        NotReady: nothing listens, or no answer came within a second.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_TIMEOUT_S) as connection:
            connection.sendall(question)
            return connection.recv(4096)
    except OSError as error:
        raise NotReady(str(error)) from error
