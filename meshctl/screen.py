"""Shows a stack to a person: its progress while it starts and stops, its endpoints, its health."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from meshctl.stack.stack import Health, LocalStack

_MARKS = {"starting": "[cyan]starting[/]", "ready": "[green]ready[/]", "failed": "[red]failed[/]",
          "stopping": "[cyan]stopping[/]", "stopped": "[dim]stopped[/]"}  # fmt: skip
_LASTING = {"ready", "failed", "stopped"}
_STATES = {"ok": "[green]ok[/]", "not ready": "[yellow]not ready[/]", "ended": "[red]ended[/]"}


class StepsShown:
    """One line for each component, changed in place on a terminal and written once elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._lock = Lock()
        self._muted = False

    @contextmanager
    def live(self) -> Iterator[None]:
        """Shows steps while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<12}"),
            TextColumn("{task.fields[step]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            self._progress, self._tasks = progress, {}
            try:
                yield
            finally:
                self._progress = None

    def on_step(self, component: str, step: str, detail: str) -> None:
        """Shows a step; the observer of a stack."""
        with self._lock:
            if self._muted:
                return
            try:
                self._show(component, step, escape(detail))
            except (OSError, SystemExit):
                # Nobody reads any more (rich ends the process for that); what runs must be stopped all the same.
                self._muted = True

    def _show(self, component: str, step: str, detail: str) -> None:
        now = time.monotonic()
        lasting = step in _LASTING
        if not lasting:
            self._began[component] = now
        elapsed = f" [dim]{now - self._began.get(component, now):.1f} s[/]" if lasting else ""
        text = f"{_MARKS[step]}{elapsed} {detail}".rstrip()
        if self._progress is None:
            if lasting:
                self._console.print(f"{component:<12} {text}")
            return
        if component not in self._tasks:
            self._tasks[component] = self._progress.add_task(component, total=1, step=text)
        self._progress.update(self._tasks[component], step=text, completed=int(lasting))


def endpoints_table(stack: LocalStack) -> Table:
    """Where to reach what."""
    table = Table(title="couponmesh", title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, endpoint in stack.endpoints().items():
        table.add_row(name, endpoint)
    table.add_row("authority", str(stack.envoy.authority))
    table.add_row("data, logs", str(stack.layout.mesh))
    return table


def health_table(healths: Sequence[Health]) -> Table:
    """How each component is doing."""
    table = Table(box=None, pad_edge=False)
    for title in ("component", "state", "pid", "endpoint", "note"):
        table.add_column(title, overflow="fold")
    for health in healths:
        note = health.detail if health.state == "ok" else f"{health.detail}; log: {health.log}"
        pid = "" if health.pid is None else str(health.pid)
        table.add_row(health.component, _STATES[health.state], pid, health.endpoint, escape(note))
    return table


def say_what_to_do(healths: Sequence[Health], console: Console) -> None:
    """Names the parts that do not serve, and the way out; silent when all do."""
    ended = [health for health in healths if health.state == "ended"]
    waiting = [health.component for health in healths if health.state == "not ready"]
    for health in ended:
        console.print(f"\n{health.component}: {health.detail}; last line of its log:\n    {escape(health.last_line)}")
    if ended:
        names = ", ".join(health.component for health in ended)
        console.print(f"\n{names} ended: `meshctl down`, then `meshctl up` starts it all again; data stays")
    if waiting:
        console.print(f"\n{', '.join(waiting)} runs but does not serve: `meshctl logs {waiting[0]}` may say why")


def describe(stack: LocalStack, healths: Sequence[Health], phase: str) -> dict[str, object]:
    """The same for programs, ready for JSON."""
    return {
        "dir": str(stack.layout.mesh),
        "phase": phase,
        "healthy": all(health.state == "ok" for health in healths),
        "components": [
            {
                "name": health.component,
                "state": health.state,
                "detail": health.detail,
                "pid": health.pid,
                "endpoint": health.endpoint,
                "log": str(health.log),
                "last_line": health.last_line,
            }
            for health in healths
        ],
        "endpoints": stack.endpoints(),
        "authority": str(stack.envoy.authority),
    }
