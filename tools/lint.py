"""Runs every static check, two at a time, and shows what each took and what the failed ones said.

Usage: python tools/lint.py [NAME …]     (all checks, or those named)
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
CHECK_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One named command line; a program of the virtual environment, or a script of tools/."""

    name: str
    command: Sequence[str]

    def argv(self) -> list[str]:
        """The command line with its program found."""
        program, *arguments = self.command
        if program.endswith(".py"):
            return [sys.executable, program, *arguments]
        return [str(SCRIPTS / program), *arguments]


# The slowest come first, so that two workers end at about the same time.
CHECKS = [
    Check("types", ["mypy"]),
    Check("gen", ["tools/gen.py", "--check"]),
    Check("imports", ["lint-imports", "--no-cache"]),
    Check("breaking", ["tools/breaking.py"]),
    Check("reference", ["tools/reference.py", "--check"]),
    Check("buf lint", ["buf", "lint"]),
    Check("buf format", ["buf", "format", "protos", "--diff", "--exit-code"]),
    Check("style", ["ruff", "check"]),
    Check("format", ["ruff", "format", "--check"]),
    Check("text", ["tools/check_text.py"]),
]


def run(check: Check) -> bool:
    """Runs one check and prints its verdict in one piece; True when it passed."""
    started = time.monotonic()
    finished = subprocess.run(
        check.argv(),
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=CHECK_TIMEOUT_S,
    )
    passed = finished.returncode == 0
    verdict = "ok  " if passed else "FAIL"
    lines = [f"{verdict} {time.monotonic() - started:5.1f} s  {check.name:<11} {' '.join(check.command)}"]
    if not passed:
        lines += [f"     | {line}" for line in finished.stdout.splitlines()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    return passed


def main() -> int:
    """Returns 1 when a check failed, 2 when a name is unknown."""
    wanted = sys.argv[1:] or [check.name for check in CHECKS]
    unknown = sorted(set(wanted) - {check.name for check in CHECKS})
    if unknown:
        print(f"unknown checks: {', '.join(unknown)}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max_workers=2) as pool:
        verdicts = list(pool.map(run, [check for check in CHECKS if check.name in wanted]))
    print(f"lint: {sum(verdicts)} of {len(verdicts)} checks passed")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
