"""The page of errors: every class of `kea.errors`, its code on the wire, and what the drawn tree says of it."""

from __future__ import annotations

import re
from typing import Any

from tools.loading import load_attribute, load_module
from tools.reference.page import Page, SourceWrong, format_table

INTRODUCTION = (
    "Every error is a `kea.errors.KeaError`; its code names it on the wire, HTTP is the status of the answer."
)
DRAWN = re.compile(r"^[│├└─ ]*(\w+)\s{2,}(\S.*)$")


def render_errors() -> str:
    """Return the table, in the order of the tree drawn at the top of `kea/errors.py`."""
    errors = load_module("kea.errors")
    meanings = _read_tree(errors.__doc__ or "")
    classes = {cls.__name__: cls for cls in errors.all_error_classes() if cls.__module__ == errors.__name__}
    drawn, real = set(meanings) | {"KeaError"}, set(classes)
    if drawn != real:
        names = ", ".join(sorted(drawn ^ real))
        raise SourceWrong(f"the tree drawn at the top of kea/errors.py and its classes differ: {names}.")
    wire = load_attribute("kea.server.errors", "WIRE")
    unplaced = sorted(name for name, cls in classes.items() if cls not in wire)
    if unplaced:
        raise SourceWrong(f"kea.server.errors.WIRE gives no HTTP status to {', '.join(unplaced)}.")
    rows = [_row(classes[name], wire[classes[name]].status, meaning) for name, meaning in meanings.items()]
    table = format_table(["Error", "Code", "HTTP", "Is a", "Retryable", "Meaning"], rows)
    return f"{INTRODUCTION}\n\n{table}"


def _read_tree(docstring: str) -> dict[str, str]:
    matches = (DRAWN.match(line) for line in docstring.splitlines() if line.startswith(("├", "│", "└")))
    return {match[1]: match[2] for match in matches if match}


def _row(cls: Any, status: int, meaning: str) -> list[str]:
    retryable = "yes" if cls.retryable else "no"
    return [f"`{cls.__name__}`", f"`{cls.code}`", str(status), f"`{cls.__bases__[0].__name__}`", retryable, meaning]


PAGE = Page("errors.md", "Errors", render_errors)
