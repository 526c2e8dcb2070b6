"""`meshctl up`: starts the local stack and stays in front of it until it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from meshctl.options import DEFAULT_MESH, AsJson, Mesh, counts, pairs
from meshctl.screen import StepsShown, describe, endpoints_table, health_table, say_what_to_do
from meshctl.stack import state
from meshctl.stack.layout import Layout
from meshctl.stack.process import identify
from meshctl.stack.stack import HTTPS_PORT, LocalStack, StackSettings

_LOOK_EVERY_S = 0.5
_LOCK_WAIT_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running in the background.")] = False,
    replicas: Annotated[
        list[str] | None, typer.Option(help="Processes of a service, such as coupon=2; may be given several times.")
    ] = None,
    https_port: Annotated[
        int | None,
        typer.Option(
            help=f"Port of REST and gRPC; fails when it is in use. Default: {HTTPS_PORT} when free, else a free one.",
            min=1,
            max=65535,
        ),
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(help="Port of one listener, such as mariadb=3307 or coupon=50051; may be given several times."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Variable of a service, such as COUPON_LOG_LEVEL=DEBUG; may be given several times."
        ),
    ] = None,
    mesh: Mesh = DEFAULT_MESH,
    as_json: AsJson = False,
) -> None:
    """Starts MariaDB, Redis, ZooKeeper, the four services and Envoy on loopback; Ctrl-C stops them.

    Data stays in the stack's folder. When a stack runs there already, this says so and changes nothing; the exit status
    is 1 when a part of it does not serve.
    """
    asked = counts(port or [], "--port")
    if https_port is not None:
        asked["https"] = https_port
    settings = StackSettings(
        replicas=counts(replicas or [], "--replicas"), ports=asked, service_settings=pairs(setting or [], "--set")
    )
    # With --json, stdout holds the one object and nothing else.
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    shown = StepsShown(console)
    layout = Layout.of(mesh)
    layout.make()
    with _told_to_stop() as (stop, hurry):
        with state.exclusive(layout):
            if _runs_already(layout, settings, console, as_json=as_json):
                return
            began = time.monotonic()
            stack = LocalStack.plan(mesh, settings, observe=shown.on_step)
            with shown.live():
                stack.start(abort=stop, owner=None if detach else identify(os.getpid()))
        try:
            _announce(stack, settings, console, took_s=time.monotonic() - began, as_json=as_json)
            if detach:
                console.print("\nruns in the background: `meshctl status`, `meshctl logs`, `meshctl down`")
                return
            console.print("\nCtrl-C stops it")
            _watch(stack, stop, console)
        finally:
            if not detach:
                # Another `meshctl up` may be looking whether this one runs.
                with state.exclusive(layout, wait_s=_LOCK_WAIT_S), shown.live():
                    stack.stop(hurry=hurry)


def _announce(stack: LocalStack, settings: StackSettings, console: Console, *, took_s: float, as_json: bool) -> None:
    console.print(f"\nup after {took_s:.1f} s; MariaDB: {stack.mariadb.sizes_in_use()}\n")
    if "https" not in settings.ports and stack.envoy.port != HTTPS_PORT:
        console.print(f"port {HTTPS_PORT} is in use by another program, so HTTPS listens on {stack.envoy.port}\n")
    console.print(endpoints_table(stack))
    if as_json:
        print(json.dumps(describe(stack, stack.health(), "up")), flush=True)


@contextmanager
def _told_to_stop() -> Iterator[tuple[Event, Event]]:
    """Two events: the first signal sets one, which stops in order, a further signal the other, which kills."""
    stop, hurry = Event(), Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield stop, hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_applied(settings: StackSettings, known: state.StackState) -> list[str]:
    """What was asked for that a running stack does not have; with which variables it runs is not known."""
    asked = [f"--replicas {n}={count}" for n, count in settings.replicas.items() if known.replicas.get(n, 1) != count]
    for name, port in settings.ports.items():
        if known.ports.get(name) != port:
            asked.append(f"--https-port {port}" if name == "https" else f"--port {name}={port}")
    return [*asked, *(f"--set {name}" for name in settings.service_settings)]


def _runs_already(layout: Layout, settings: StackSettings, console: Console, *, as_json: bool) -> bool:
    """Says so when a stack runs here; what a killed `meshctl` left half-started is stopped first.

    Raises:
        typer.Exit: a part of it does not serve.
    """
    known = state.read(layout)
    if known.phase == "down":
        return False
    stack = LocalStack.running(layout.mesh)
    if stack is None:
        return False
    # The lock is held here, so whoever was starting or stopping it is gone.
    if known.phase != "up" or not known.alive():
        stack.stop()
        return False
    healths = stack.health()
    console.print(f"a stack runs in {layout.mesh} already; nothing was changed\n")
    if ignored := _not_applied(settings, known):
        console.print(f"not applied: {escape(', '.join(ignored))}; `meshctl down` first\n")
    serves = all(health.state == "ok" for health in healths)
    if not serves:
        console.print("not all of it serves:\n")
        console.print(health_table(healths))
        say_what_to_do(healths, console)
        console.print()
    console.print(endpoints_table(stack))
    if as_json:
        print(json.dumps(describe(stack, healths, known.phase)), flush=True)
    if not serves:
        raise typer.Exit(1)
    return True


def _watch(stack: LocalStack, stop: Event, console: Console) -> None:
    """Returns when told to stop; says once of each component that it ended, and lets the others go on."""
    ended: set[str] = set()
    while not stop.wait(_LOOK_EVERY_S):
        for component in stack.components:
            if component.name not in ended and not component.is_running:
                ended.add(component.name)
                stack.note_end(component)
                console.print(
                    f"[red]{component.name} ended[/] ({component.exit_description()}), the rest goes on; "
                    f"{escape(component.log_tail())}"
                )
    console.print("stopping")
