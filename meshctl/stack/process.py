"""Starts, watches, signals and ends single processes, each known by its pid together with its start time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

# How long the kernel may take to end a process after SIGKILL (it may be in the middle of a disk write).
_KILL_WAIT_S = 10.0
# Fields of /proc/PID/stat after the program's name, counted from 0 (proc(5): state is field 3, starttime field 22).
_STATE_FIELD = 0
_START_TIME_FIELD = 19


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that stays recognisable when its pid is used again.

    Attributes:
        pid: process id.
        started_ticks: when it started, in clock ticks since the machine's boot, as /proc/PID/stat says.
    """

    pid: int
    started_ticks: int


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none, or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold any character, parentheses included.
    fields = text.rpartition(")")[2].split()
    if fields[_STATE_FIELD] in ("Z", "X"):
        return None
    return ProcessId(pid, int(fields[_START_TIME_FIELD]))


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs (a stopped one does, a zombie doesn't)."""
    return identify(process.pid) == process


def is_frozen(process: ProcessId) -> bool:
    """Whether it runs and was stopped by SIGSTOP."""
    if not is_alive(process):
        return False
    text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()[_STATE_FIELD] == "T"


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signals exactly this process; False when it is gone.

    The pid is pinned by a pidfd before its start time is compared, so a reused pid is never hit.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(process: ProcessId, timeout_s: float, *, hurry: Event | None = None) -> bool:
    """Waits until the process has ended; False when it still runs after timeout_s, or once `hurry` is set."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + timeout_s
    try:
        # A pidfd turns readable when its process ends, also while nobody has reaped it.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while is_alive(process):
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or (hurry is not None and hurry.is_set()):
                return False
            poll.poll(min(remaining_s, 0.1) * 1000)
    finally:
        os.close(descriptor)
    return True


def end(process: ProcessId, *, grace_s: float, hurry: Event | None = None) -> bool:
    """Ends a process: SIGTERM, then SIGKILL when it takes longer than grace_s.

    Args:
        process: which one; one that is gone already is no fault.
        grace_s: how long it may take after SIGTERM.
        hurry: cuts the grace short when set.

    Returns:
        True when it went in its own time, False when it had to be killed.
    """
    if send_signal(process, signal.SIGTERM):
        # A frozen process takes the SIGTERM only once it goes on.
        send_signal(process, signal.SIGCONT)
    if wait_gone(process, grace_s, hurry=hurry):
        return True
    send_signal(process, signal.SIGKILL)
    wait_gone(process, _KILL_WAIT_S)
    return False


class Child:
    """A process of the stack: started here, or adopted from the state file of another `meshctl`."""

    def __init__(self, process: ProcessId, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process
        self._popen = popen

    @classmethod
    def spawn(cls, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Child:
        """Starts a program whose output goes to the end of `log`, in a session of its own.

        The own session keeps the terminal's Ctrl-C away from it: the stack's parts are ended in order, by pid.
        """
        with log.open("ab") as output:
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # A child is a zombie until it is reaped, so its entry in /proc is there even if it ended at once.
        process = identify(popen.pid) or ProcessId(popen.pid, -1)
        return cls(process, popen)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def is_alive(self) -> bool:
        """Whether it still runs."""
        if self._popen is not None:
            return self._popen.poll() is None
        return is_alive(self.process)

    def exit_description(self) -> str:
        """How it ended, for a person: "exit status 1", "killed by SIGKILL"; "ended" when that isn't known."""
        status = self._popen.poll() if self._popen is not None else None
        if status is None:
            return "ended"
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def send_signal(self, number: signal.Signals) -> bool:
        """Signals it; False when it is gone."""
        return self.is_alive() and send_signal(self.process, number)

    def end(self, *, grace_s: float, hurry: Event | None = None) -> bool:
        """As `end`, and reaps it."""
        gently = end(self.process, grace_s=grace_s, hurry=hurry)
        self._reap()
        return gently

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.send_signal(signal.SIGKILL)
        wait_gone(self.process, _KILL_WAIT_S)
        self._reap()

    def _reap(self) -> None:
        if self._popen is not None:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=_KILL_WAIT_S)
