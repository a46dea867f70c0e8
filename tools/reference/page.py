"""What a generated page is, and the Markdown it is made of. Knows no particular page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NOTICE = "<!-- Made from the code by `make docs`. Do not edit: change the code and make it again. -->"


class SourceWrong(Exception):
    """The code that a page is made from contradicts itself; the message says where."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page below docs/reference. `render` returns what follows the title; raises `SourceMissing`, `SourceWrong`."""

    name: str
    title: str
    render: Callable[[], str]

    def create_text(self) -> str:
        return f"{NOTICE}\n# {self.title}\n\n{self.render().strip()}\n"


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped, line breaks become spaces."""
    lines = [_format_row(header), _format_row(["---"] * len(header))]
    return "\n".join([*lines, *(_format_row(row) for row in rows)])


def _format_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def first_sentence(docstring: str | None) -> str:
    """Return the first paragraph of a docstring on one line, up to its first full stop."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    head, stop, _ = paragraph.partition(". ")
    return head + "." if stop else paragraph
