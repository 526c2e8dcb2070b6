"""The program `meshctl`: until its commands are loaded, a Ctrl-C ends it without a word."""

from __future__ import annotations

<<<<<<< HEAD
import signal
=======
import sys

import typer
from rich.console import Console
from rich.markup import escape

from meshctl.audit import app as audit
from meshctl.certs import certs
from meshctl.demo.command import demo
from meshctl.down import down
from meshctl.logs import logs
from meshctl.migrate import migrate
from meshctl.reconcile import reconcile
from meshctl.stack.failures import StackError, StartAborted
from meshctl.status import status
from meshctl.token import token
from meshctl.up import up

_COMMANDS = (up, down, status, logs, migrate, demo, token, certs, reconcile)
_CALLED_OFF = 130


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
>>>>>>> audit


def main() -> None:
    """Loads the commands and runs the one that the arguments name."""
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Takes most of a second, in which a KeyboardInterrupt would show where some library stood.
    from meshctl.commands import run  # noqa: PLC0415

    signal.signal(signal.SIGINT, usual)
    run()


if __name__ == "__main__":
    main()
