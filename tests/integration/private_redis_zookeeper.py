"""A Redis and a ZooKeeper of the tests' own on loopback ports, to be frozen, killed and started again by process id."""

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_START_TIMEOUT_S = 20.0
_CLASS_PATH = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar"
_ZOO_CFG = """tickTime=500
dataDir={data}
clientPort={port}
clientPortAddress=127.0.0.1
admin.enableServer=false
4lw.commands.whitelist=*
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, question: bytes, *, timeout_s: float = 0.5) -> bytes:
    """Sends a line to a loopback port and returns the first bytes of the answer; none if nobody listens."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(question)
        return connection.recv(64)
    return b""


async def until(condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 10.0) -> None:
    """Waits for a condition, asked a hundred times a second; fails when it does not come true in time."""
    async with asyncio.timeout(timeout_s):
        for _ in range(round(timeout_s * 100)):
            if await condition():
                return
            await asyncio.sleep(0.01)
    raise AssertionError("what was waited for did not happen")


class PrivateServer:
    """A server process that is started, frozen, killed and started again with the same data."""

    def __init__(self, name: str, folder: Path, port: int, command: list[str], is_up: Callable[[], bool]) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._log = folder / f"{name}.log"
        self._command = command
        self._is_up = is_up
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_up():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"{self._command[0]} does not answer"
            time.sleep(0.02)

    async def restart(self) -> None:
        """Kills it and starts it again, while the event loop runs on."""
        self.kill()
        await asyncio.to_thread(self.start)

    def kill(self) -> None:
        """Ends it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_TIMEOUT_S)
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


def private_redis(folder: Path, *more_options: str) -> PrivateServer:
    program = shutil.which("redis-server")
    assert program, "redis-server is not installed"
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *more_options]
    return PrivateServer("redis", folder, port, [program, *options], lambda: ask(port, b"PING\r\n") == b"+PONG\r\n")


def private_zookeeper(folder: Path) -> PrivateServer:
    program = shutil.which("java")
    assert program, "java is not installed"
    port = free_port()
    settings = folder / "zoo.cfg"
    settings.write_text(_ZOO_CFG.format(data=folder / "zookeeper", port=port))
    main_class = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    command = [program, "-Xmx128m", "-cp", _CLASS_PATH, main_class, str(settings)]
    return PrivateServer("zookeeper", folder, port, command, lambda: ask(port, b"ruok") == b"imok")
