"""A MariaDB of the tests' own, on a socket and a loopback port, which can be killed and started again."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiomysql import connect
from pymysql.err import OperationalError

ACCOUNT = "mesh"
PASSWORD = "mesh-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateMariaDB:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "s.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        with (self.folder / "install.log").open("wb") as log:
            subprocess.run(
                [
                    str(shutil.which("mariadb-install-db")),
                    "--no-defaults",
                    f"--datadir={self.folder / 'data'}",
                    # Not the shared one, which every starting server sweeps.
                    f"--tmpdir={self.folder}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    *as_root,
                ],
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60,
            )

    async def start(self, *options: str) -> None:
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        with (self.folder / "mariadbd.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - forking takes a moment, and nothing else runs yet
                [
                    program,
                    "--no-defaults",
                    f"--datadir={self.folder / 'data'}",
                    f"--tmpdir={self.folder}",
                    f"--socket={self.socket}",
                    f"--port={self.port}",
                    "--bind-address=127.0.0.1",
                    "--innodb-buffer-pool-size=64M",
                    "--skip-name-resolve",
                    *as_root,
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        await self.until_up()

    async def until_up(self) -> None:
        for _ in range(300):
            try:
                await self.administer("SELECT 1")
            except OperationalError:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "mariadbd.log").read_text()
                await asyncio.sleep(0.05)
            else:
                return
        raise TimeoutError("MariaDB isn't up after 15 s")

    async def create(self, schema: str) -> str:
        """Creates an empty schema and an account that may use it; returns its DSN."""
        await self.administer(
            f"DROP DATABASE IF EXISTS {schema}",
            f"CREATE DATABASE {schema} CHARACTER SET utf8mb4",
            *(
                f"CREATE USER IF NOT EXISTS {ACCOUNT}@'{host}' IDENTIFIED BY '{PASSWORD}'"
                for host in ("localhost", "%")
            ),
            *(f"GRANT ALL ON *.* TO {ACCOUNT}@'{host}'" for host in ("localhost", "%")),
        )
        return self.dsn(schema)

    def dsn(self, schema: str, *, port: int | None = None) -> str:
        return f"mysql://{ACCOUNT}:{PASSWORD}@127.0.0.1:{port or self.port}/{schema}"

    async def administer(self, *statements: str) -> list[tuple[object, ...]]:
        """Runs statements as root and returns the last one's rows."""
        connection = await connect(unix_socket=str(self.socket), user="root", autocommit=True)
        try:
            rows: list[tuple[object, ...]] = []
            for statement in statements:
                await connection.query(statement)
                rows = list(connection._result.rows or ())
            return rows
        finally:
            connection.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()


@asynccontextmanager
async def running_mariadb(folder: Path, *options: str) -> AsyncIterator[PrivateMariaDB]:
    server = PrivateMariaDB(folder)
    server.install()
    try:
        await server.start(*options)
        yield server
    finally:
        server.stop()
