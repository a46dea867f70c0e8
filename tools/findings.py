"""What a check reports, and how a check ends as a command. Knows no particular check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong, where, and what to do about it. `line` 0 means the file as a whole."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


Check = Callable[[Path], list[Finding]]


def run_check(name: str, check: Check, root: Path = ROOT) -> int:
    """Run one check over the tree at `root`, print what it found, and return the exit status (0: nothing found)."""
    findings = sorted(set(check(root)))
    for finding in findings:
        print(finding)
    print(f"{name}: {len(findings)} problem{'' if len(findings) == 1 else 's'}" if findings else f"{name}: ok")
    return 1 if findings else 0
