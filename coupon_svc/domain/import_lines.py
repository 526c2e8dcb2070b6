"""The lines of an import: how they are written, and what is wrong with one by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CODE = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{4,30}[0-9A-Za-z]")
_USER_ID = re.compile(r"[0-9]{1,19}")
_MAX_USER_ID = (1 << 63) - 1
_HEADERS = {"code", "code,user_id"}


@dataclass(frozen=True, slots=True)
class ImportLine:
    """One code of another system as it was given; no user leaves it unactivated."""

    code: str
    user: str = ""

    @property
    def user_id(self) -> int:
        """The owner, 0 for none; only of a line that `problem_of` finds nothing wrong with."""
        return int(self.user) if self.user else 0


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line; `line` counts from 1. The code itself is a secret and is not repeated."""

    line: int
    field: str
    reason: str
    problem: str


def csv_lines(text: str) -> Iterator[ImportLine]:
    """The lines of CSV text "code" or "code,user_id", after a header if there is one; empty lines do not count.

    A line that has another form comes out as it stands, for `problem_of` to refuse.
    """
    first = True
    for raw in text.splitlines():
        line = raw.strip()
        if first:
            line = line.removeprefix("\ufeff")
        if not line:
            continue
        if first and line.replace(" ", "").lower() in _HEADERS:
            first = False
            continue
        first = False
        code, _, user = line.partition(",")
        yield ImportLine(code.strip(), user.strip())


def problem_of(number: int, line: ImportLine) -> LineError | None:
    """What is wrong with the form of a line."""
    if not _CODE.fullmatch(line.code):
        problem = "must be 6 to 32 letters, digits and hyphens, beginning and ending with a letter or digit"
        return LineError(number, "code", "VALIDATION_FAILED", problem)
    if line.user and not (_USER_ID.fullmatch(line.user) and 0 < int(line.user) <= _MAX_USER_ID):
        return LineError(number, "user_id", "VALIDATION_FAILED", "must be a number above 0")
    return None
