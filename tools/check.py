"""What `make check` runs: every check of the house, each told apart, all of them also after one has failed.

`python -m tools.check NAME...` runs some of them; `--list` names them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from tools.findings import ROOT

# Each check is a command of its own, so that one of them can be run alone while one works on it.
CHECKS: dict[str, tuple[str, ...]] = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy",),
    "imports": ("tools.check_imports",),
    "dependencies": ("tools.check_dependencies",),
    "sizes": ("tools.check_sizes", "--report"),
    "tracked": ("tools.check_tracked",),
    "docs": ("tools.check_docs",),
    "reference": ("tools.reference", "--check"),
}


def run_checks(names: Sequence[str]) -> int:
    """Run the named checks in order, print a line for each at the end, and return the exit status."""
    results: list[tuple[str, int, float]] = []
    for name in names:
        print(f"== {name}", flush=True)
        start_s = time.perf_counter()
        status = subprocess.run([sys.executable, "-m", *CHECKS[name]], cwd=ROOT, check=False).returncode
        results.append((name, status, time.perf_counter() - start_s))
    print("== summary")
    for name, status, taken_s in results:
        print(f"{'FAILED' if status else 'ok':6} {name} ({taken_s:.1f} s)")
    failed = [name for name, status, _ in results if status]
    print(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and run; unknown names are refused with the list of known ones."""
    if "--list" in arguments:
        print("\n".join(CHECKS))
        return 0
    unknown = [name for name in arguments if name not in CHECKS]
    if unknown:
        print(f"There is no check named {', '.join(unknown)}; checks are {', '.join(CHECKS)}.", file=sys.stderr)
        return 2
    return run_checks(arguments or list(CHECKS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
