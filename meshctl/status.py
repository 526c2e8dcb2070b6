"""`meshctl status`: asks every component of the local stack how it is."""

from __future__ import annotations

import json

import typer
from rich.console import Console

from meshctl.options import DEFAULT_MESH, AsJson, Mesh
from meshctl.screen import describe, endpoints_table, health_table, say_what_to_do
from meshctl.stack import state
from meshctl.stack.layout import Layout
from meshctl.stack.stack import LocalStack

_DOWN = 3


def status(mesh: Mesh = DEFAULT_MESH, as_json: AsJson = False) -> None:
    """Shows health, pid and endpoint of each component.

    Exit status: 0 when all of it serves, 1 when a part doesn't, 3 when nothing runs.
    """
    console = Console(highlight=False, soft_wrap=True)
    layout = Layout.of(mesh)
    phase = state.read(layout).phase
    stack = LocalStack.running(mesh)
    if stack is None:
        if as_json:
            empty = {"dir": str(layout.mesh), "phase": "down", "healthy": False, "components": [], "endpoints": {}}
            print(json.dumps(empty))
        else:
            console.print(f"nothing runs in {layout.mesh}; `meshctl up` starts it")
        raise typer.Exit(_DOWN)
    healths = stack.health()
    if as_json:
        print(json.dumps(describe(stack, healths, phase)))
    else:
        if phase != "up":
            console.print(f"it is {phase}")
        console.print(health_table(healths))
        say_what_to_do(healths, console)
        console.print()
        console.print(endpoints_table(stack))
    if not all(health.state == "ok" for health in healths):
        raise typer.Exit(1)
