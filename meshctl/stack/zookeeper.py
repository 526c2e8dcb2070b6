"""The stack's ZooKeeper: one standalone server on loopback."""

from __future__ import annotations

from pathlib import Path

from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady
from meshctl.stack.layout import Layout
from meshctl.stack.packages import Programs
from meshctl.stack.redis import ask

ROOT = "/couponmesh"
_SLF4J = Path("/usr/share/java/slf4j-simple.jar")


class ZooKeeperServer(Component):
    """A ZooKeeper server of the stack's own."""

    def __init__(self, layout: Layout, port: int, programs: Programs | None) -> None:
        super().__init__("zookeeper", layout)
        self.port = port
        self._programs = programs

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Writes its configuration."""
        data = self.layout.data("zookeeper")
        data.mkdir(mode=0o700, exist_ok=True)
        settings = {
            # Sessions last 2 to 20 ticks: from one to ten seconds.
            "tickTime": "500",
            "dataDir": str(data),
            "clientPort": str(self.port),
            "clientPortAddress": "127.0.0.1",
            "maxClientCnxns": "200",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "ruok,srvr,mntr",
            "autopurge.snapRetainCount": "3",
            "autopurge.purgeInterval": "1",
        }
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        self._configuration.write_text(text, encoding="utf-8")

    def command(self) -> Command:
        """The server in a small Java heap."""
        assert self._programs is not None, "a component that is only looked at is not started"
        return Command(
            [
                str(self._programs.java),
                "-Xmx256m",
                # One small process that must start quickly.
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Dorg.slf4j.simpleLogger.showDateTime=true",
                "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
                # Else each health question is a line of the log.
                "-Dorg.slf4j.simpleLogger.log.org.apache.zookeeper.server.NIOServerCnxn=warn",
                "-cp",
                f"{self._programs.zookeeper_jar}:{_SLF4J}",
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                str(self._configuration),
            ]
        )

    def check(self) -> None:
        """Asks for its mode, which it has only once it serves."""
        answer = ask(self.port, b"srvr").decode(errors="replace")
        if "Mode: standalone" not in answer:
            raise NotReady(answer.strip().partition("\n")[0] or "closed the connection")

    @property
    def _configuration(self) -> Path:
        return self.layout.run / "zoo.cfg"
