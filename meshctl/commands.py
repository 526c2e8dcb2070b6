"""The registry of `meshctl`'s commands, each in a module of its own, and how their faults are shown."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from meshctl.audit import app as audit
from meshctl.certs import certs
from meshctl.down import down
from meshctl.logs import logs
from meshctl.migrate import migrate
from meshctl.reconcile import reconcile
from meshctl.stack.failures import StackError, StartAborted
from meshctl.status import status
from meshctl.token import token
from meshctl.up import up

_CALLED_OFF = 130


def demo() -> None:
    """Starts a private stack, shows coupons from issue to journal over HTTPS and gRPC, and stops it.

    Exits with 0 only if every reply was as it must be; then nothing is left behind.
    """
    # Its HTTP client would delay every other command.
    from meshctl.demo.command import run  # noqa: PLC0415

    run()


_COMMANDS = (up, down, status, logs, migrate, demo, token, certs, reconcile)


def build() -> typer.Typer:
    """The command line with all its commands."""
    app = typer.Typer(
        help="Runs and operates couponmesh.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in _COMMANDS:
        app.command()(command)
    app.add_typer(audit, name="audit")
    return app


def run() -> None:
    """Runs the command that the arguments name; a fault that a person can understand is shown as one message."""
    try:
        build()()
    except StackError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(_CALLED_OFF if isinstance(error, StartAborted) else 1)
