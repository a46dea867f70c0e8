"""The project's Markdown files taken apart: fenced blocks, code spans, links. Knows no rule about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(\w*)")
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELL_LANGUAGES = frozenset({"sh", "bash", "shell", "console"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A fenced block (`language` as written after the fence), a code span ("span"), or a link's target ("link")."""

    line: int
    language: str
    text: str


def find_documents(root: Path) -> list[Path]:
    """Return the Markdown files at the top of the project and below docs/, in a stable order."""
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def walk_pieces(text: str) -> Iterator[Piece]:
    """Yield the pieces of a document in order; what is inside a fence gives no spans and no links."""
    fence = ""
    opened, language = 0, ""
    block: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if not fence and match:
            fence, language, opened, block = match[1], match[2].lower(), number, []
        elif fence and match and match[1].startswith(fence) and not match[2]:
            yield Piece(opened, language, "\n".join(block))
            fence = ""
        elif fence:
            block.append(line)
        else:
            yield from (Piece(number, "span", span) for span in SPAN.findall(line))
            yield from (Piece(number, "link", target) for target in LINK.findall(SPAN.sub("", line)))


def walk_commands(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, command) of every shell command: lines of shell blocks, and code spans (which may be commands)."""
    for piece in walk_pieces(text):
        if piece.language == "span":
            yield piece.line, piece.text.strip()
        elif piece.language in SHELL_LANGUAGES:
            yield from _commands_of_block(piece)


def _commands_of_block(piece: Piece) -> Iterator[tuple[int, str]]:
    lines = piece.text.splitlines()
    is_console = any(line.startswith("$ ") for line in lines)
    pending = ""
    for offset, line in enumerate(lines, start=1):
        if is_console and not pending and not line.startswith("$ "):
            continue  # output of a command
        command = pending + line.removeprefix("$ ").split(" #")[0].strip()
        pending = command.removesuffix("\\") if command.endswith("\\") else ""
        if command and not pending and not command.startswith("#"):
            yield piece.line + offset, command
