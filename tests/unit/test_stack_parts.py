"""What the local stack is made of, one piece at a time: processes, ports, packages, state."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshctl.stack import packages, ports, state
from meshctl.stack.component import Command, Component
from meshctl.stack.failures import NotReady, StackError
from meshctl.stack.layout import Layout
from meshctl.stack.process import Child, ProcessId, end, identify, is_alive, send_signal, wait_gone
from meshctl.stack.services import unknown_settings
from meshctl.stack.state import StackState

IGNORES_SIGTERM = (
    "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_whose_pid_was_used_again_is_not_the_same(sleeper: subprocess.Popen[bytes]) -> None:
    now = identify(sleeper.pid)
    assert now is not None
    earlier = replace(now, started_ticks=now.started_ticks - 1)
    assert is_alive(now)
    assert not is_alive(earlier)


def test_a_reused_pid_is_neither_signalled_nor_ended(sleeper: subprocess.Popen[bytes]) -> None:
    now = identify(sleeper.pid)
    assert now is not None
    earlier = replace(now, started_ticks=now.started_ticks - 1)
    assert not send_signal(earlier, signal.SIGKILL)
    assert end(earlier, grace_s=5)
    assert sleeper.poll() is None
    assert send_signal(now, signal.SIGKILL)
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert identify(process.pid) is None
    finally:
        process.wait()


def test_a_pid_that_nobody_has_is_gone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert not send_signal(ProcessId(process.pid, 1), signal.SIGTERM)
    assert end(ProcessId(process.pid, 1), grace_s=5)


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    known = identify(process.pid)
    assert known is not None
    assert not Child(known, process).end(grace_s=0.1)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_a_frozen_process_is_ended_by_sigterm(sleeper: subprocess.Popen[bytes]) -> None:
    known = identify(sleeper.pid)
    assert known is not None
    sleeper.send_signal(signal.SIGSTOP)
    assert end(known, grace_s=10)
    assert sleeper.wait(timeout=5) == -signal.SIGTERM


def test_a_child_tells_how_it_ended_and_writes_to_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    child = Child.spawn(["sh", "-c", "echo after; exit 3"], env=os.environ, cwd=tmp_path, log=log)
    assert wait_gone(child.process, 10)
    assert log.read_text() == "before\nafter\n"
    assert child.exit_description() == "exit status 3"
    assert not child.is_alive()


class _Failing(Component):
    """Writes one line and ends."""

    line = ""

    @property
    def endpoint(self) -> str:
        return ""

    def command(self) -> Command:
        return Command(["sh", "-c", f"echo {self.line}; exit 1"])

    def check(self) -> None:
        raise NotReady("never")


def test_a_failed_start_shows_the_log_of_this_start_only(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "mesh")
    layout.make()
    for line in ("earlier", "latest"):
        part = _Failing("part", layout)
        part.line = line
        part.launch()
        with pytest.raises(StackError, match=f"exit status 1.*\n    {line}$"):
            part.wait_ready()
    assert part.log.read_text() == "earlier\nlatest\n"


def test_a_variable_is_known_when_its_service_reads_it() -> None:
    known = ["COUPON_LOG_LEVEL", "RISK_KEYRING", "SETTLE_CONFIG_FILE", "CAMPAIGN_DRAIN_S"]
    assert unknown_settings(known) == []
    assert unknown_settings([*known, "COUPON_NOSUCH", "RISK_LOG_LEVL", "PATH"]) == [
        "COUPON_NOSUCH", "PATH", "RISK_LOG_LEVL (did you mean RISK_LOG_LEVEL?)"
    ]  # fmt: skip


def test_ports_asked_for_come_first_then_preferred_then_those_of_the_last_start() -> None:
    taken = ports.choose(["a", "b", "c", "d"], asked={}, preferred={}, last={})
    assert len(set(taken.values())) == 4
    again = ports.choose(
        ["a", "b", "c", "d"],
        asked={"a": taken["d"]},
        preferred={"b": taken["a"]},
        last={"b": taken["b"], "c": taken["c"], "d": taken["d"]},
    )
    assert again["a"] == taken["d"]
    assert again["b"] == taken["a"]
    assert again["c"] == taken["c"]
    assert again["d"] not in taken.values()


def test_a_port_in_use_is_refused_when_asked_for_and_avoided_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port}, asked for https, is in use"):
            ports.choose(["https"], asked={"https": port}, preferred={}, last={})
        assert ports.choose(["https"], asked={}, preferred={"https": port}, last={"https": port})["https"] != port


def test_every_missing_package_is_named_in_one_error_with_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "find_program", lambda _name: None)
    with pytest.raises(StackError) as caught:
        packages.find_programs(zookeeper_jar=tmp_path / "none.jar")
    names = "mariadb-server-core mariadb-client-core redis-server zookeeper default-jre-headless"
    assert f"apt-get install -y --no-install-recommends {names}\n" in str(caught.value)
    assert "make setup" in str(caught.value)
    assert str(caught.value).count("apt-get") == 1


def test_only_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jar = tmp_path / "zookeeper.jar"
    jar.touch()
    monkeypatch.setattr(
        packages, "find_program", lambda name: None if name == "redis-server" else Path("/usr/bin") / name
    )
    with pytest.raises(StackError, match="recommends redis-server\n"):
        packages.find_programs(zookeeper_jar=jar)


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "mesh")
    assert state.read(layout) == StackState()
    layout.make()
    written = StackState(
        phase="up",
        owner=ProcessId(12, 34),
        replicas={"coupon": 2},
        ports={"https": 8443},
        processes={"coupon-2": ProcessId(56, 78)},
    )
    state.write(layout, written)
    assert state.read(layout) == written


def test_state_that_cannot_be_understood_is_an_error(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    layout.state.write_text("{")
    with pytest.raises(StackError, match="cannot be read"):
        state.read(layout)
    layout.state.write_text('{"version": 0}')
    with pytest.raises(StackError, match="another version"):
        state.read(layout)


def test_two_cannot_start_or_stop_one_stack_at_once(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    with (
        state.exclusive(layout),
        pytest.raises(StackError, match="another meshctl is starting or stopping"),
        state.exclusive(layout),
    ):
        pass
    with state.exclusive(layout):
        pass


def test_a_folder_whose_path_is_too_long_for_unix_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="too long a path for unix sockets"):
        Layout.of(tmp_path / ("x" * 100)).make()
