"""Sums up a JUnit report of pytest per test folder, and refuses a run in which no test was executed.

Usage: python tools/test_summary.py build/tests.xml [--totals]
  --totals   prints only "PASSED FAILED SKIPPED"
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Tally:
    """How many tests ended how, and the seconds they took."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    duration_s: float = 0.0

    def add(self, case: ET.Element) -> None:
        """Counts one <testcase>."""
        self.duration_s += float(case.get("time", "0"))
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif case.find("skipped") is not None:
            self.skipped += 1
        else:
            self.passed += 1


def kind_of(case: ET.Element) -> str:
    """The folder under tests/ a case belongs to: "unit", "contract", "integration" …, "other" when it has none."""
    parts = case.get("classname", "").split(".")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else "other"


def tallies(report: Path) -> dict[str, Tally]:
    """One tally per test folder."""
    found: dict[str, Tally] = defaultdict(Tally)
    # The report is this project's own; the parser's weakness against hostile XML doesn't matter here.
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - see the comment above
        found[kind_of(case)].add(case)
    return dict(found)


def main() -> int:
    """Returns 1 when the report is missing or tells of no executed test."""
    report = Path(sys.argv[1])
    found = tallies(report) if report.is_file() else {}
    passed, failed, skipped = (
        sum(getattr(tally, end) for tally in found.values()) for end in ("passed", "failed", "skipped")
    )
    if "--totals" in sys.argv[2:]:
        print(passed, failed, skipped)
        return 0
    for kind, tally in sorted(found.items()):
        ends = f"{tally.passed:>5} passed {tally.failed:>4} failed {tally.skipped:>4} skipped"
        print(f"{kind:<12} {ends} {tally.duration_s:8.1f} s")
    if not passed + failed:
        print("no test was executed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
