"""Makes the reference pages; with --check, says which of them the code has left behind.

A page is added by writing a module beside this one that ends with a `PAGE`, and naming it in PAGES.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.findings import ROOT, Finding, run_check
from tools.loading import SourceMissing
from tools.reference import commands, configuration, errors, metrics, names, python
from tools.reference.page import Page, SourceWrong

PAGES: tuple[Page, ...] = (commands.PAGE, configuration.PAGE, errors.PAGE, metrics.PAGE, names.PAGE, python.PAGE)
FOLDER = "docs/reference"


def check_reference(root: Path, pages: tuple[Page, ...] = PAGES) -> list[Finding]:
    """Return every page that differs from what the code makes, and every page that nothing makes."""
    findings: list[Finding] = []
    for page in pages:
        path = f"{FOLDER}/{page.name}"
        try:
            text = page.create_text()
        except (SourceMissing, SourceWrong) as error:
            findings.append(Finding(path, 0, f"cannot be made: {error}"))
            continue
        if not (root / path).exists():
            findings.append(Finding(path, 0, "is not there; run `make docs` and commit it."))
        elif (root / path).read_text(encoding="utf-8") != text:
            findings.append(Finding(path, 0, "is behind the code; run `make docs` and commit it."))
    made = {page.name for page in pages}
    strays = sorted(path.name for path in (root / FOLDER).glob("*") if path.name not in made)
    return findings + [Finding(f"{FOLDER}/{name}", 0, "is made by nothing; delete it.") for name in strays]


def write_reference(root: Path, pages: tuple[Page, ...] = PAGES) -> int:
    """Write every page that can be made, say what was written, and return the exit status."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    status = 0
    for page in pages:
        try:
            (root / FOLDER / page.name).write_text(page.create_text(), encoding="utf-8")
            print(f"{FOLDER}/{page.name}: written")
        except (SourceMissing, SourceWrong) as error:
            print(f"{FOLDER}/{page.name}: cannot be made: {error}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(run_check("reference pages", check_reference) if "--check" in sys.argv[1:] else write_reference(ROOT))
