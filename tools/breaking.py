"""Compares `protos/` with the last released contract and refuses what would break its callers.

The released contract is the last `v*` tag. A clone may have no tag (none was made yet, or the clone is shallow), so
`protos/baseline.binpb`, an image committed at each release, stands in for it: the check always runs.

Usage: python tools/breaking.py [--record]
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

BUF = str(Path(sysconfig.get_path("scripts")) / "buf")
BASELINE = "protos/baseline.binpb"


def last_tag(root: Path) -> str | None:
    """The nearest release tag in the history of `root`, or None when the clone has none."""
    command = ["git", "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*"]
    described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None


def check(root: Path) -> int:
    """Prints each breaking change under `root`; returns 0 when there is none."""
    tag = last_tag(root)
    against = f".git#tag={tag},subdir=protos" if tag else BASELINE
    print(f"against {f'tag {tag}' if tag else f'{BASELINE} (no release tag in this clone)'}", flush=True)
    command = [BUF, "breaking", "protos", "--against", against, "--exclude-imports"]
    return subprocess.run(command, cwd=root, check=False).returncode


def record(root: Path) -> int:
    """Makes the contract as it stands the baseline."""
    command = [BUF, "build", "protos", "--exclude-source-info", "-o", BASELINE]
    return subprocess.run(command, cwd=root, check=False).returncode


def main() -> int:
    """Returns 0 when the contract breaks nobody (or was recorded)."""
    return record(Path.cwd()) if "--record" in sys.argv[1:] else check(Path.cwd())


if __name__ == "__main__":
    sys.exit(main())
