"""Refuses tracked text that names one machine or package host, that a merge left behind, or that links to nowhere.

Usage: python tools/check_text.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Generated and third-party files are as their authors made them.
EXEMPT = ("gen/", "vendor/", "LICENSE")
# The target of a Markdown link, without its fragment; links within a page have none.
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
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


def dead_links_in(name: str, text: str) -> list[str]:
    """One line for each relative link of a Markdown file whose target isn't there."""
    lines = enumerate(text.split("\n"), start=1)
    links = [(number, link) for number, line in lines for link in LINK.findall(line)]
    return [
        f"{name}:{number}: a link to nowhere: {link}"
        for number, link in links
        if "://" not in link and "…" not in link and not (Path(name).parent / link).exists()
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
        text = content.decode("utf-8", errors="replace")
        found += problems_in(name, text)
        if name.endswith(".md"):
            found += dead_links_in(name, text)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
