"""The stack's MariaDB: its sizes, its one application account, and the databases on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.err import MySQLError

from meshctl.edge.certificates import write_private
from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady, StackError
from meshctl.stack.layout import Layout
from meshctl.stack.packages import Programs
from meshctl.stack.secret_files import Secrets

ACCOUNT = "couponmesh"
DATABASES = ("coupon_0", "coupon_1", "risk_0", "settle_0", "campaign_0")
_INSTALL_TIMEOUT_S = 120
_ANSWER_TIMEOUT_S = 2
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MariaDBSizes:
    """What the server may use; durability is not a size and always that of production.

    Attributes:
        buffer_pool_mib: pages of tables and indexes kept in memory. 256 MiB hold some 500,000 coupons with their
            journal, far more than a laptop's stack sees; memory is taken as it is used.
        redo_log_mib: a quarter of the buffer pool lets a burst of writes go on without waiting for checkpoints.
        connections_max: four services, a pool of 8 for each database and process, twice that for replicas, and people.
    """

    buffer_pool_mib: int = 256
    redo_log_mib: int = 64
    connections_max: int = 200


class MariaDB(Component):
    """A MariaDB server of the stack's own."""

    start_timeout_s = 60.0
    stop_grace_s = 30.0

    def __init__(
        self, layout: Layout, port: int, programs: Programs | None, secrets: Secrets | None, sizes: MariaDBSizes
    ) -> None:
        super().__init__("mariadb", layout)
        self.port = port
        self._programs = programs
        self._secrets = secrets
        self._sizes = sizes

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def socket(self) -> str:
        """Its unix socket, the only way in for root."""
        return str(self.layout.run / "mariadb.sock")

    def dsn(self, database: str) -> str:
        """The DSN of the application account; holds its password."""
        return f"mysql://{ACCOUNT}:{self._known_secrets.database_password}@{self.endpoint}/{database}"

    def prepare(self) -> None:
        """Installs the system tables at the first start and writes what every start executes."""
        data = self.layout.data("mariadb")
        if not data.exists():
            self._install()
        write_private(self.layout.run / "mariadb-init.sql", self._initial_statements().encode())

    def command(self) -> Command:
        """The server with its sizes."""
        data, sizes = self.layout.data("mariadb"), self._sizes
        return Command(
            [
                str(self._known_programs.mariadbd),
                "--no-defaults",
                *_as_root(),
                f"--datadir={data}",
                # A server removes every #sql file of its temporary folder when it starts, another server's too.
                f"--tmpdir={self.layout.run}",
                f"--socket={self.socket}",
                f"--pid-file={self.layout.run / 'mariadb.pid'}",
                f"--init-file={self.layout.run / 'mariadb-init.sql'}",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                # An account is told by its address; no name server is asked.
                "--skip-name-resolve",
                f"--max-connections={sizes.connections_max}",
                "--max-allowed-packet=16M",
                "--local-infile=0",
                "--performance-schema=OFF",
                # Every acknowledged COMMIT is on the disk, in the redo log and in the binary log.
                f"--innodb-buffer-pool-size={sizes.buffer_pool_mib}M",
                f"--innodb-log-file-size={sizes.redo_log_mib}M",
                "--innodb-flush-log-at-trx-commit=1",
                f"--log-bin={data / 'binlog'}",
                "--binlog-format=ROW",
                "--sync-binlog=1",
                "--max-binlog-size=64M",
                "--binlog-expire-logs-seconds=86400",
                "--server-id=1",
                # What sessions set for themselves as well; here for people who log in by hand.
                "--sql-mode=STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,"
                "NO_ENGINE_SUBSTITUTION",
                "--transaction-isolation=READ-COMMITTED",
                "--default-time-zone=+00:00",
                "--character-set-server=utf8mb4",
                "--collation-server=utf8mb4_bin",
            ]
        )

    def check(self) -> None:
        """Logs in as the services do and reads from every database."""
        try:
            for database in DATABASES:
                self._query("SELECT DATABASE()", database=database)
        except MySQLError as error:
            raise NotReady(_message(error)) from error

    def sizes_in_use(self) -> str:
        """What the running server says of its sizes and durability, for a person."""
        names = (
            "innodb_buffer_pool_size", "innodb_log_file_size", "innodb_flush_log_at_trx_commit", "sync_binlog",
            "binlog_format", "max_connections",
        )  # fmt: skip
        ((pool, redo, flush, sync, binlog, connections),) = self._query("SELECT " + ", ".join(f"@@{n}" for n in names))
        return (
            f"buffer pool {pool // _MIB} MiB, redo log {redo // _MIB} MiB, at most {connections} connections, "
            f"innodb_flush_log_at_trx_commit={flush}, sync_binlog={sync}, binlog {binlog}"
        )

    def administer(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements as root and gives the last one's rows.

        Raises:
            StackError: the server is away or refuses one.
        """
        try:
            with pymysql.connect(
                unix_socket=self.socket,
                user="root",
                password=self._known_secrets.database_root_password,
                autocommit=True,
                connect_timeout=_ANSWER_TIMEOUT_S,
                read_timeout=30,
            ) as connection:
                rows: list[tuple[Any, ...]] = []
                with connection.cursor() as cursor:
                    for statement in statements:
                        cursor.execute(statement)
                        rows = list(cursor.fetchall())
                return rows
        except MySQLError as error:
            raise StackError(f"MariaDB: {_message(error)}") from error

    def _query(self, statement: str, *, database: str = DATABASES[0]) -> Sequence[tuple[Any, ...]]:
        connection = pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=ACCOUNT,
            password=self._known_secrets.database_password,
            database=database,
            connect_timeout=_ANSWER_TIMEOUT_S,
            read_timeout=_ANSWER_TIMEOUT_S,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _install(self) -> None:
        """Makes the data folder in one step: a start that is cut off leaves none, and the next one begins afresh."""
        data = self.layout.data("mariadb")
        partial = data.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with self.log.open("ab") as log:
            done = subprocess.run(
                [
                    str(self._known_programs.mariadb_install_db),
                    "--no-defaults",
                    *_as_root(),
                    f"--datadir={partial}",
                    f"--tmpdir={self.layout.run}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    f"--innodb-log-file-size={self._sizes.redo_log_mib}M",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for meshctl, which lets this end first.
                start_new_session=True,
                timeout=_INSTALL_TIMEOUT_S,
                check=False,
            )
        if done.returncode != 0:
            raise StackError(f"mariadb-install-db failed (exit status {done.returncode}); {self.log_tail()}")
        partial.rename(data)

    def _initial_statements(self) -> str:
        """What the server executes before it listens, one statement a line; the same at every start."""
        secrets = self._known_secrets
        accounts = [f"'{ACCOUNT}'@'{host}'" for host in ("127.0.0.1", "localhost")]
        # An underscore in a GRANT's database name stands for any character.
        patterns = [name.replace("_", r"\_") for name in DATABASES]
        return "\n".join(
            [
                *(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4;" for name in DATABASES),
                # Accounts belong to this server alone and stay out of its binary log.
                "SET SESSION sql_log_bin = 0;",
                "DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> 'localhost');",
                "DELETE FROM mysql.proxies_priv WHERE Host <> 'localhost';",
                "FLUSH PRIVILEGES;",
                f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{secrets.database_root_password}';",
                *(
                    f"CREATE OR REPLACE USER {account} IDENTIFIED BY '{secrets.database_password}';"
                    for account in accounts
                ),
                *(f"GRANT ALL ON `{pattern}`.* TO {account};" for account in accounts for pattern in patterns),
                "",
            ]
        )

    @property
    def _known_programs(self) -> Programs:
        assert self._programs is not None, "a component that is only looked at is not started"
        return self._programs

    @property
    def _known_secrets(self) -> Secrets:
        assert self._secrets is not None, "a component that is only looked at is not asked"
        return self._secrets


def _as_root() -> list[str]:
    # mariadbd refuses to run as root unless told so; a plain user must not name another.
    return ["--user=root"] if os.geteuid() == 0 else []


def _message(error: MySQLError) -> str:
    return str(error.args[-1]) if error.args else type(error).__name__
