"""One part of the stack: how it is prepared, started, asked whether it serves, and stopped."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from meshctl.stack.failures import NotReady, StackError, StartAborted
from meshctl.stack.layout import Layout
from meshctl.stack.process import Child, ProcessId

_POLL_S = 0.03
_LOG_TAIL_LINES = 8
_LOG_TAIL_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start.

    Attributes:
        argv: program and arguments.
        env: its whole environment.
    """

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Component(ABC):
    """One process of the stack.

    A subclass says how it is prepared, started and checked; everything else is the same for all. Methods block; those
    that start and stop are called by one thread at a time.

    Attributes:
        name: its name in commands, logs and state, such as "mariadb" or "coupon-2".
        layout: where its files lie.
    """

    start_timeout_s: float = 30.0
    stop_grace_s: float = 10.0
    # A part that never served has nothing to finish; and mariadbd, told to stop in the first moments of its start, may
    # never do so (10.11: SIGTERM some 60 ms after its start).
    unserved_grace_s: float = 2.0

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self._child: Child | None = None
        self._has_served = False
        self._log_start = 0

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Where it listens, for a person."""

    def prepare(self) -> None:  # noqa: B027 - not every component has something to prepare
        """Writes what it reads at its start; repeatable."""

    @abstractmethod
    def command(self) -> Command:
        """What to start."""

    @abstractmethod
    def check(self) -> None:
        """Asks it for something that only a serving one can answer, within about a second.

        Raises:
            NotReady: it does not serve; says what happened.
        """

    @property
    def log(self) -> Path:
        """Its output."""
        return self.layout.log(self.name)

    @property
    def process(self) -> ProcessId | None:
        """The process started or adopted last; it may have ended."""
        return self._child.process if self._child is not None else None

    @property
    def is_running(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._child is not None and self._child.is_alive()

    def adopt(self, process: ProcessId) -> None:
        """Takes charge of a process that another `meshctl` started."""
        self._child = Child(process)
        self._has_served = True

    def launch(self) -> ProcessId:
        """Prepares and starts it, without waiting until it serves.

        Raises:
            StackError: it cannot be started.
        """
        if self.is_running:
            raise StackError(f"{self.name} runs already")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self.prepare()
        command = self.command()
        self._has_served = False
        try:
            self._child = Child.spawn(command.argv, env=command.env, cwd=self.layout.mesh, log=self.log)
        except OSError as error:
            raise StackError(f"{self.name} cannot be started: {error}") from error
        return self._child.process

    def wait_ready(self, *, timeout_s: float | None = None, aborted: Callable[[], bool] = lambda: False) -> None:
        """Waits until `check` passes.

        Args:
            timeout_s: how long at most; the component's own limit by default.
            aborted: calls the wait off once it says True.

        Raises:
            StackError: its process ended, or the time is over; names the log and shows its end.
            StartAborted: `aborted` said so.
        """
        limit_s = self.start_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            # The process is looked at before it is asked: another server may answer in place of one that is gone.
            if not self.is_running:
                raise StackError(f"{self.name} did not start ({self.exit_description()}); {self.log_tail()}")
            try:
                self.check()
            except NotReady as reason:
                if time.monotonic() > deadline:
                    raise StackError(
                        f"{self.name} does not serve after {limit_s:g} s ({reason}); {self.log_tail()}"
                    ) from reason
            else:
                self._has_served = True
                return
            time.sleep(_POLL_S)
            if aborted():
                raise StartAborted("the start was called off")

    def stop(self, *, hurry: Event | None = None) -> bool:
        """Ends it with SIGTERM, then SIGKILL; True when the latter was not needed."""
        grace_s = self.stop_grace_s if self._has_served else self.unserved_grace_s
        return self._child is None or self._child.end(grace_s=grace_s, hurry=hurry)

    def kill(self) -> None:
        """Ends it with SIGKILL and returns when it is gone."""
        if self._child is not None:
            self._child.kill()

    def freeze(self) -> None:
        """Stops it with SIGSTOP: it keeps its connections and answers nothing.

        Raises:
            StackError: it does not run.
        """
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen one go on.

        Raises:
            StackError: it does not run.
        """
        self._signal(signal.SIGCONT)

    def exit_description(self) -> str:
        """How its process ended, for a person."""
        return self._child.exit_description() if self._child is not None else "never started"

    def log_tail(self) -> str:
        """Where its log is, with the last lines that it wrote since it was launched here."""
        return "\n    ".join([f"its log is {self.log}", *self.last_lines(_LOG_TAIL_LINES)])

    def last_lines(self, count: int) -> list[str]:
        """The end of its log, of this start only when it was launched here."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                # A log that is shorter than at the start was begun anew.
                start = self._log_start if self._log_start <= size else 0
                file.seek(max(start, size - _LOG_TAIL_BYTES))
                return file.read().decode(errors="replace").splitlines()[-count:]
        except OSError:
            return []

    def _signal(self, number: signal.Signals) -> None:
        if self._child is None or not self._child.send_signal(number):
            raise StackError(f"{self.name} does not run")
