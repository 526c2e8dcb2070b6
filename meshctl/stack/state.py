"""Remembers on disk what a stack runs, so that another `meshctl` can look at it and stop it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from meshctl.edge.certificates import write_private
from meshctl.stack.failures import StackError
from meshctl.stack.layout import Layout
from meshctl.stack.process import ProcessId, is_alive

Phase = Literal["down", "starting", "up", "stopping"]
_VERSION = 1
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class StackState:
    """What is known of a stack.

    Attributes:
        phase: how far it is.
        owner: the `meshctl` that starts it, or stays in front of it; None when it runs detached.
        replicas: processes of each service that has more or fewer than one.
        ports: the port of each listener by name; kept when the stack is down, for the next start.
        processes: what was started, by component.
        ended: how a component ended that nobody stopped, as far as the `meshctl up` in front of it saw it.
    """

    phase: Phase = "down"
    owner: ProcessId | None = None
    replicas: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, ProcessId] = field(default_factory=dict)
    ended: Mapping[str, str] = field(default_factory=dict)

    def alive(self) -> dict[str, ProcessId]:
        """The processes that still run, by component."""
        return {name: process for name, process in self.processes.items() if is_alive(process)}

    def with_process(self, component: str, process: ProcessId) -> StackState:
        """A copy that knows of one process more."""
        return replace(self, processes={**self.processes, component: process})


def read(layout: Layout) -> StackState:
    """The state on disk; that of a stack which was never started when there is none.

    Raises:
        StackError: the file cannot be understood.
    """
    try:
        document: Any = json.loads(layout.state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return StackState()
    except (OSError, ValueError) as error:
        raise StackError(f"{layout.state} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise StackError(f"{layout.state} was written by another version of meshctl; stop that stack with it first")
    owner = document["owner"]
    return StackState(
        phase=document["phase"],
        owner=_process(owner) if owner else None,
        replicas=document["replicas"],
        ports=document["ports"],
        processes={name: _process(entry) for name, entry in document["processes"].items()},
        ended=document.get("ended", {}),
    )


def write(layout: Layout, state: StackState) -> None:
    """Replaces the state on disk in one step."""
    document = {
        "version": _VERSION,
        "phase": state.phase,
        "owner": _entry(state.owner) if state.owner else None,
        "replicas": dict(state.replicas),
        "ports": dict(state.ports),
        "processes": {name: _entry(process) for name, process in state.processes.items()},
        "ended": dict(state.ended),
    }
    write_private(layout.state, json.dumps(document, indent=2).encode() + b"\n")


@contextmanager
def exclusive(layout: Layout, *, wait_s: float = 0.0) -> Iterator[None]:
    """Keeps every other `meshctl` from starting or stopping the same stack meanwhile.

    Args:
        layout: the stack's files.
        wait_s: how long another one may still be at it.

    Raises:
        StackError: another one is at it.
    """
    deadline = time.monotonic() + wait_s
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                raise StackError(f"another meshctl is starting or stopping the stack in {layout.mesh}")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _entry(process: ProcessId) -> dict[str, int]:
    return {"pid": process.pid, "started_ticks": process.started_ticks}


def _process(entry: Mapping[str, int]) -> ProcessId:
    return ProcessId(entry["pid"], entry["started_ticks"])
