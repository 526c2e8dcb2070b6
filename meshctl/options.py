"""Command-line options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Mesh = Annotated[Path, typer.Option("--dir", "--mesh", help="The stack's folder.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_MESH = Path(".mesh")


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Reads `name=value` as often as it was given.

    Raises:
        typer.BadParameter: a text has another form.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not name=value", param_hint=option)
        found[name] = value
    return found


def counts(texts: Sequence[str], option: str) -> dict[str, int]:
    """Reads `name=number` as often as it was given.

    Raises:
        typer.BadParameter: a text has another form.
    """
    found = pairs(texts, option)
    wrong = [f"{name}={value}" for name, value in found.items() if not (value.isdecimal() and value.isascii())]
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)}: not a number", param_hint=option)
    return {name: int(value) for name, value in found.items()}
