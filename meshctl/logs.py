"""`meshctl logs`: prints what the components of the local stack wrote."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from meshctl.options import DEFAULT_MESH, Mesh
from meshctl.stack.failures import StackError
from meshctl.stack.layout import Layout

_LOOK_EVERY_S = 0.2
_CHUNK_BYTES = 65_536


def logs(
    component: Annotated[str, typer.Argument(help="Which component; all of them by default.")] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines of each.", min=0)] = 50,
    mesh: Mesh = DEFAULT_MESH,
) -> None:
    """Prints the last lines of a component's log, or of every log with the component's name before each line."""
    folder = Layout.of(mesh).logs
    known = sorted(path.stem for path in folder.glob("*.log"))
    if not known:
        raise StackError(f"there are no logs in {folder}; was the stack ever started here?")
    if component and component not in known:
        raise StackError(f"no log is called {component}; there are {', '.join(known)}")
    chosen = [component] if component else known
    width = 0 if component else max(len(name) for name in chosen)
    tails = [_Tail(folder / f"{name}.log", f"{name:<{width}} | " if width else "") for name in chosen]
    for tail in tails:
        tail.print_last(lines)
    try:
        while follow:
            time.sleep(_LOOK_EVERY_S)
            for tail in tails:
                tail.print_new()
    except KeyboardInterrupt:
        return


class _Tail:
    """One log file, read from where it was left."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._position = 0
        self._rest = b""

    def print_last(self, lines: int) -> None:
        with self._path.open("rb") as file:
            last = deque(file, maxlen=lines)
            self._position = file.tell()
        for line in last:
            self._print(line)

    def print_new(self) -> None:
        with self._path.open("rb") as file:
            # A file that became shorter was started over.
            self._position = min(self._position, file.seek(0, os.SEEK_END))
            file.seek(self._position)
            for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                *complete, self._rest = (self._rest + chunk).split(b"\n")
                for line in complete:
                    self._print(line)
            self._position = file.tell()

    def _print(self, line: bytes) -> None:
        print(self._prefix + line.decode(errors="replace").rstrip("\n"), flush=True)
