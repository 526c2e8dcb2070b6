"""`meshctl up`, `status`, `logs`, `migrate` and `down` as a person runs them, on real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from meshctl.stack.ports import is_free
from meshctl.stack.stack import HTTPS_PORT

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ["mariadb", "redis", "zookeeper", "coupon", "coupon-2", "risk", "settle", "campaign", "envoy"]
SECRET_FILES = ["database_password", "database_root_password", "code_key", "code_keyring", "audit_keyring",
                "risk_keyring"]  # fmt: skip
NOBODY = 65534
TIMEOUT_S = 90
# On a machine that has nothing else to do.
UP_LIMIT_S = 15.0


@dataclass
class Meshctl:
    """The command line, always for the same folder.

    Attributes:
        up_s: How long the stack took to come up.
    """

    mesh: Path
    python: Sequence[str] = (sys.executable, "-P")
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    up_s: float = 0.0
    said_at_start: str = ""

    def argv(self, *arguments: str) -> list[str]:
        return [*self.python, "-m", "meshctl", *arguments, "--dir", str(self.mesh)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            **self._options(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, *arguments: str) -> Foreground:
        process = subprocess.Popen(
            self.argv(*arguments),
            **self._options(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Foreground(process)

    def status(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return reply

    def processes(self) -> list[str]:
        """Command lines of all processes of this folder, found without its state file."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                folder = os.readlink(path / "cwd")  # noqa: PTH115 - the link may end in " (deleted)"
            except OSError:
                continue
            line = b" ".join(words).decode(errors="replace")
            # mariadbd and redis-server go to their data folders; a part that was started anywhere else names its files.
            if f"{self.mesh}/" in f"{folder}/ {line}":
                found.append(line)
        return found

    def _options(self) -> dict[str, Any]:
        return {"env": dict(self.env), "cwd": self.mesh.parent, "text": True}


class Foreground:
    """A `meshctl up` that stays in front of its stack."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def read_until(self, pattern: str) -> str:
        """Reads lines until one matches; a pytest timeout bounds the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{pattern!r} was never printed:\n{self.output}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        status = self.process.wait(timeout=TIMEOUT_S)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # A short path of its own, since unix sockets have little room.
    folder = Path(tempfile.mkdtemp(prefix="meshctl-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def meshctl(folder: Path) -> Iterator[Meshctl]:
    command = Meshctl(folder / ".mesh")
    yield command
    command.run("down")


@pytest.fixture(scope="module")
def detached(meshctl: Meshctl) -> Meshctl:
    """A stack that runs in the background, with two coupon services."""
    with contextlib.ExitStack() as open_sockets:
        # Where something else listens already, it serves this purpose as well.
        with contextlib.suppress(OSError):
            open_sockets.enter_context(socket.create_server(("127.0.0.1", HTTPS_PORT)))
        began = time.monotonic()
        done = meshctl.run("up", "--detach", "--replicas", "coupon=2")
    assert done.returncode == 0, done.stderr + done.stdout
    meshctl.up_s = time.monotonic() - began
    meshctl.said_at_start = done.stdout
    return meshctl


def listeners(pid: int) -> dict[str, set[tuple[str, int]]]:
    """Addresses on which a process listens (TCP) or receives (UDP), as {"tcp": {(hex address, port)}, …}."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)  # noqa: PTH115 - socket:[n] is no path
        except OSError:
            continue
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    found: dict[str, set[tuple[str, int]]] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            local, remote, condition, inode = fields[1], fields[2], fields[3], fields[9]
            listens = condition == "0A" if table.startswith("tcp") else remote.endswith(":0000")
            if inode in sockets and listens:
                address, port = local.split(":")
                found.setdefault(table[:3], set()).add((address, int(port, 16)))
    return found


# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel prints them on a little-endian machine.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_a_stack_is_up_within_seconds(detached: Meshctl) -> None:
    # Where more wants to run than there are cores, everything takes its share longer, and twice that is no defect.
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    limit_s = UP_LIMIT_S * max(1.0, 2 * crowd)
    print(f"up in {detached.up_s:.1f} s, {crowd:.1f} processes ready for each core")  # noqa: T201 - the figure is what a person wants to know.
    assert detached.up_s < limit_s


def test_status_lists_every_component_as_serving(detached: Meshctl) -> None:
    done = detached.run("status", "--json")
    assert done.returncode == 0
    status = json.loads(done.stdout)
    assert status["phase"] == "up"
    assert status["healthy"] is True
    assert {entry["name"]: entry["state"] for entry in status["components"]} == dict.fromkeys(COMPONENTS, "ok")
    assert set(status["endpoints"]) >= {*COMPONENTS} - {"envoy"} | {"https", "coupon metrics"}

    table = detached.run("status").stdout
    assert all(name in table for name in COMPONENTS)
    assert status["endpoints"]["https"] in table


def test_an_up_whose_usual_port_is_taken_says_so_and_takes_another(detached: Meshctl) -> None:
    port = detached.status()["endpoints"]["https"].rpartition(":")[2]
    assert int(port) != HTTPS_PORT
    assert f"port {HTTPS_PORT} is in use by another program, so HTTPS listens on {port}\n" in detached.said_at_start


def test_nothing_listens_beyond_loopback(detached: Meshctl) -> None:
    status = detached.status()
    ports = set()
    for component in status["components"]:
        for protocol, addresses in listeners(component["pid"]).items():
            assert {address for address, _ in addresses} <= LOOPBACK, f"{component['name']} listens on {addresses}"
            if protocol == "tcp":
                ports |= {port for _, port in addresses}
    known = {int(re.search(r":(\d+)(/|$)", endpoint)[1]) for endpoint in status["endpoints"].values()}  # type: ignore[index]  # every endpoint has a port
    assert ports == known


def test_secrets_and_files_that_hold_them_are_their_owners_alone(detached: Meshctl) -> None:
    mesh = detached.mesh
    private = [
        *(mesh / "secrets" / name for name in SECRET_FILES),
        *(mesh / "env").iterdir(), *(mesh / "shardmap").iterdir(), *(mesh / "keys").glob("*.pem"),
        mesh / "state.json", mesh / "certs" / "edge.key", mesh / "run" / "mariadb-init.sql",
    ]  # fmt: skip
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in private} == {path.name: "0o600" for path in private}
    assert mesh.stat().st_mode & 0o777 == 0o700
    secrets = [(mesh / "secrets" / name).read_text().partition(":")[2] or (mesh / "secrets" / name).read_text()
               for name in SECRET_FILES]  # fmt: skip
    assert len(set(secrets)) == len(SECRET_FILES)
    for log in (mesh / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), f"{log.name} holds a secret"
    for line in detached.processes():
        assert not any(secret in line for secret in secrets), "a command line holds a secret"


def test_a_second_up_says_that_a_stack_runs_and_changes_nothing(detached: Meshctl) -> None:
    before = detached.status()
    done = detached.run("up", "--replicas", "coupon=1", "--set", "COUPON_LOG_LEVEL=DEBUG", "--replicas", "risk=1")
    assert done.returncode == 0
    assert "already" in done.stdout
    assert "not applied: --replicas coupon=1, --set COUPON_LOG_LEVEL; `meshctl down` first" in done.stdout
    assert before["endpoints"]["https"] in done.stdout
    assert detached.status() == before


def test_migrate_finds_every_database_up_to_date(detached: Meshctl) -> None:
    reply = json.loads(detached.run("migrate", "--json").stdout)
    databases = {entry["database"]: entry["applied"] for entry in reply["databases"]}
    assert databases == {name: [] for name in ("coupon_0", "coupon_1", "risk_0", "settle_0", "campaign_0")}


def test_logs_of_one_component_and_of_all(detached: Meshctl) -> None:
    one = detached.run("logs", "coupon-2", "-n", "1").stdout
    assert len(one.splitlines()) == 1
    assert "coupon_svc" in one
    every = detached.run("logs", "-n", "3").stdout
    assert {line.partition("|")[0].strip() for line in every.splitlines()} >= {"coupon", "coupon-2", "mariadb", "redis"}
    unknown = detached.run("logs", "nonsense")
    assert unknown.returncode == 1
    assert "no log is called nonsense" in unknown.stderr


def test_followed_logs_show_what_is_written_later(detached: Meshctl) -> None:
    following = detached.start("logs", "redis", "-f", "-n", "1")
    try:
        following.read_until(".")
        with (detached.mesh / "logs" / "redis.log").open("a") as log:
            log.write("written later\n")
        following.read_until("written later")
    finally:
        following.process.send_signal(signal.SIGINT)
    assert following.finish() == 0


def test_status_names_a_component_that_was_killed(detached: Meshctl) -> None:
    pids = {entry["name"]: entry["pid"] for entry in detached.status()["components"]}
    os.kill(pids["coupon-2"], signal.SIGKILL)

    done = detached.run("status", "--json")

    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert status["healthy"] is False
    assert {e["name"] for e in status["components"] if e["state"] == "ended"} == {"coupon-2"}
    again = detached.run("up")
    assert again.returncode == 1
    assert "not all of it serves" in again.stdout
    assert "coupon-2.log" in again.stdout
    for told in (again.stdout, detached.run("status").stdout):
        assert "coupon-2 ended: `meshctl down`, then `meshctl up`" in told
        assert "last line of its log" in told


def test_down_leaves_no_process_and_a_second_one_has_nothing_to_do(detached: Meshctl) -> None:
    assert detached.processes(), "the search for processes finds none even while they run"
    done = detached.run("down")
    assert done.returncode == 0, done.stderr
    assert detached.processes() == []
    assert detached.run("status").returncode == 3
    assert "nothing runs" in detached.run("down").stdout


def test_a_second_up_keeps_the_data_names_a_component_that_dies_and_is_stopped_by_down(detached: Meshctl) -> None:
    """Goes on where `down` left the folder: no stack runs in it, its data are there."""
    if detached.status()["phase"] != "down":
        detached.run("down")
    kept = json.loads((detached.mesh / "state.json").read_text())["ports"]
    password = (detached.mesh / "secrets" / "database_password").read_text()
    # MariaDB elsewhere: the shard maps in ZooKeeper, by which services find it, must follow.
    port = next(port for port in range(kept["mariadb"] + 1, 32_000) if port not in kept.values() and is_free(port))
    foreground = detached.start("up", "--port", f"mariadb={port}")
    try:
        foreground.read_until("databases .* no new migrations")
        foreground.read_until("Ctrl-C stops it")
        status = detached.status()
        assert {e["name"]: e["state"] for e in status["components"]} == {
            name: "ok" for name in COMPONENTS if name != "coupon-2"
        }
        assert status["endpoints"]["mariadb"] == f"127.0.0.1:{port}"
        assert status["endpoints"]["redis"] == f"127.0.0.1:{kept['redis']}"
        assert (detached.mesh / "secrets" / "database_password").read_text() == password

        pids = {entry["name"]: entry["pid"] for entry in status["components"]}
        os.kill(pids["risk"], signal.SIGKILL)
        line = foreground.read_until("risk ended")
        assert "killed by SIGKILL" in line
        assert "logs/risk.log" in line
        ended = [e for e in detached.status()["components"] if e["state"] != "ok"]
        assert [(e["name"], e["state"]) for e in ended] == [("risk", "ended")]
        assert ended[0]["detail"].startswith("killed by SIGKILL")
    finally:
        # Through the `up` in front of it, to which this is a SIGTERM.
        down = detached.run("down", "--json")
    assert foreground.finish() == 0, foreground.output
    assert set(json.loads(down.stdout)["stopped"]) == {*COMPONENTS} - {"coupon-2", "risk"}
    stopped = re.findall(r"^(\S+) +stopped", foreground.output, re.MULTILINE)
    assert set(stopped[:3]) == {"coupon", "settle", "campaign"}
    assert stopped[3] == "envoy"
    assert set(stopped[4:]) == {"mariadb", "redis", "zookeeper"}
    assert detached.processes() == []


def test_an_up_that_fails_half_way_names_the_part_and_its_log_and_leaves_nothing(detached: Meshctl) -> None:
    done = detached.run("up", "--detach", "--set", "COUPON_RISK_DEADLINE_MS=never")
    assert done.returncode == 1
    assert "coupon did not start (exit status 2)" in done.stderr
    assert "logs/coupon.log" in done.stderr
    assert "COUPON_RISK_DEADLINE_MS" in done.stderr
    assert detached.processes() == []
    assert detached.status()["phase"] == "down"


def test_ctrl_c_while_it_starts_stops_what_was_started(detached: Meshctl) -> None:
    foreground = detached.start("up")
    foreground.read_until("^redis +ready")
    foreground.process.send_signal(signal.SIGINT)
    assert foreground.finish() == 130, foreground.output
    assert "called off" in foreground.output
    assert detached.processes() == []


def test_ctrl_c_while_the_program_itself_is_loading_shows_no_traceback(detached: Meshctl) -> None:
    for _ in range(3):
        foreground = detached.start("up")
        maps = Path(f"/proc/{foreground.process.pid}/maps")
        # One of the first libraries that a command loads.
        while foreground.process.poll() is None and "grpc/_cython" not in maps.read_text():
            continue
        foreground.process.send_signal(signal.SIGINT)
        assert foreground.finish() in {-signal.SIGINT, 1, 130}
        assert "Traceback" not in foreground.output
    assert detached.processes() == []


def test_what_a_killed_up_left_behind_is_stopped_by_the_next_down(detached: Meshctl) -> None:
    foreground = detached.start("up")
    foreground.read_until("^mariadb +ready")
    foreground.process.kill()
    foreground.finish()
    assert any("mariadbd" in line for line in detached.processes())
    assert detached.run("down").returncode == 0
    assert detached.processes() == []


def test_what_cannot_be_had_is_refused_before_anything_starts(detached: Meshctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = detached.run("up", "--https-port", str(port))
    assert done.returncode == 1
    assert f"port {port}, asked for https, is in use" in done.stderr
    for arguments, fault in (
        (("--port", "mysql=3307"), "no listener is called mysql"),
        (("--port", "redis=70000"), "70000, asked for redis, is no port"),
        (("--replicas", "coupon=9"), "from 1 to 8 replicas, not 9"),
        (("--replicas", "till=2"), "no service is called till"),
        (("--set", "COUPN_LOG_LEVEL=DEBUG"), "no service reads COUPN_LOG_LEVEL"),
        (("--set", "COUPON_NOSUCH=x"), "no service reads COUPON_NOSUCH"),
        (("--set", "RISK_LOG_LEVL=DEBUG"), "RISK_LOG_LEVL (did you mean RISK_LOG_LEVEL?)"),
    ):
        refused = detached.run("up", *arguments)
        assert (refused.returncode, fault in refused.stderr) == (1, True), refused.stderr
    assert detached.processes() == []


def test_missing_system_packages_are_named_together_with_one_command(folder: Path) -> None:
    env = {**os.environ, "PATH": "/nonexistent"}
    # Only packages that lie where the search looks first can be hidden from it; the others are there all the same.
    command = Meshctl(folder / "bare", python=(sys.executable, "-P"), env=env)
    done = command.run("up")
    assert done.returncode == 1
    assert "redis-server" in done.stderr
    assert "default-jre-headless" in done.stderr
    assert done.stderr.count("apt-get install") == 1
    assert "make setup" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_that_cannot_start_leaves_no_folder_and_speaks_of_no_logs(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": "/nonexistent", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "meshctl", "demo"],
        env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "apt-get install" in done.stderr
    assert "kept" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def _as_nobody() -> Meshctl | None:
    """The command line as a plain user runs it, if that user can open an interpreter here."""
    env = {
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin",
        "PYTHONPATH": ":".join([str(ROOT), str(ROOT / "gen"), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    plain = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    # An interpreter in root's home opens with this one capability only; it lets files be read, and nothing else.
    reading = (*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    opens_itself = (
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import meshctl.commands']))"
    )
    for prefix in (plain, reading):
        python = (*prefix, sys.executable, "-P")
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [*python, "-c", opens_itself], env=env, cwd="/", capture_output=True, check=False,
                timeout=TIMEOUT_S,
            )  # fmt: skip
            if tried.returncode == 0:
                return Meshctl(Path(), python=python, env=env)
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as a plain user already")
def test_a_plain_user_can_run_it() -> None:
    meshctl = _as_nobody()
    if meshctl is None:
        pytest.skip("no interpreter here can be run by a plain user")
    home = Path(tempfile.mkdtemp(prefix="meshctl-"))
    os.chown(home, NOBODY, NOBODY)
    meshctl = replace(meshctl, mesh=home / ".mesh", env={**meshctl.env, "HOME": str(home)})
    try:
        done = meshctl.run("up", "--detach", "--json")
        assert done.returncode == 0, done.stderr
        components = json.loads(done.stdout)["components"]
        assert {e["name"]: e["state"] for e in components} == {n: "ok" for n in COMPONENTS if n != "coupon-2"}
        assert {Path(f"/proc/{entry['pid']}").stat().st_uid for entry in components} == {NOBODY}
    finally:
        assert meshctl.run("down").returncode == 0
        shutil.rmtree(home)
    assert meshctl.processes() == []
