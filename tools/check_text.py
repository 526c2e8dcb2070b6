"""Refuses tracked text that ties the project to one machine or one package host, or that a merge left behind.

Usage: python tools/check_text.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Generated and third-party files are as their authors made them.
EXEMPT = ("gen/", "vendor/", "LICENSE")
PROBLEMS = {
    "a path of one machine": re.compile(r"(?<![A-Za-z0-9_.~}*-])[/](?:root|work|home|Users)/[\w.]"),
    "the address of a package host": re.compile(
        r"://[\w.-]*(?:pypi|pythonhosted|npmjs|maven|golang|debian|crates)[\w.-]*\.\w|index[-]url|\"resolved\": *\"http"
    ),
    "a leftover of a merge": re.compile(r"^(?:<{7}|>{7}) "),
    "white space at the end of the line": re.compile(r"[ \t]$"),
}


def problems_in(name: str, text: str) -> list[str]:
    """One line "file:line: problem" for each thing that must not be committed."""
    return [
        f"{name}:{number}: {problem}"
        for number, line in enumerate(text.split("\n"), start=1)
        for problem, pattern in PROBLEMS.items()
        if pattern.search(line)
    ]


def tracked_files() -> list[str]:
    """Files that git tracks or would add, without the exempt ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if not name.startswith(EXEMPT) and Path(name).is_file()]


def main() -> int:
    """Returns 1 when a file has a problem."""
    found: list[str] = []
    for name in tracked_files():
        content = Path(name).read_bytes()
        if b"\0" in content:
            continue
        found += problems_in(name, content.decode("utf-8", errors="replace"))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
