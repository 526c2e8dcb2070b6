"""`meshctl down`: stops the local stack, by the pids that were started."""

from __future__ import annotations

import json
import signal

import typer
from rich.console import Console

from meshctl.options import DEFAULT_MESH, AsJson, Mesh
from meshctl.screen import StepsShown
from meshctl.stack import state
from meshctl.stack.layout import Layout
from meshctl.stack.process import send_signal, wait_gone
from meshctl.stack.stack import LocalStack

_OWNER_TIMEOUT_S = 90.0
_LOCK_WAIT_S = 30.0


def down(mesh: Mesh = DEFAULT_MESH, as_json: AsJson = False) -> None:
    """Stops the services, then Envoy, then the stores; data stays. Nothing running is no fault."""
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    layout = Layout.of(mesh)
    stopped = _stop(layout, console)
    if not stopped:
        console.print(f"nothing runs in {layout.mesh}")
    if as_json:
        print(json.dumps({"dir": str(layout.mesh), "stopped": stopped}))


def _stop(layout: Layout, console: Console) -> list[str]:
    """Stops what runs; gives the names of the components that were running."""
    known = state.read(layout)
    if known.phase == "down":
        return []
    running = sorted(known.alive())
    # A `meshctl up` that stands in front of it stops it in order by itself.
    if known.owner is not None and send_signal(known.owner, signal.SIGTERM):
        console.print(f"asking the `meshctl up` in front of it (pid {known.owner.pid}) to stop it")
        if not wait_gone(known.owner, _OWNER_TIMEOUT_S):
            console.print(f"it is still at it after {_OWNER_TIMEOUT_S:g} s")
            raise typer.Exit(1)
    shown = StepsShown(console)
    with state.exclusive(layout, wait_s=_LOCK_WAIT_S), shown.live():
        # What nobody stands in front of: a detached stack, or the rest of one whose `meshctl up` was killed.
        stack = LocalStack.running(layout.mesh, observe=shown.on_step)
        if stack is not None:
            stack.stop()
    return running
