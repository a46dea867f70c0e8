"""Holds the prose to the code: links, make targets, commands, examples, letters of shapes, the map of folders.

It reads the documents; it runs none of their commands. Commands of `kea` are looked up in its Typer application.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.commands import CommandTree, load_commands
from tools.findings import Finding, run_check
from tools.loading import SourceMissing, load_module
from tools.markdown import Piece, find_documents, walk_commands, walk_pieces
from tools.source import PACKAGE, find_sources

TARGET = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)
NAME = re.compile(r"^kea\.(\w+)")
SHAPE = re.compile(r"#.*?\[([\w*+/, -]+)\]")
LETTER = re.compile(r"\b[A-Z][A-Za-z]?\b")
STRUCTURES = "docs/structures.md"
MAP_HEADING = f"## Folders of `{PACKAGE}`"
GLOSSARY = "docs/glossary.md"


def check_docs(root: Path) -> list[Finding]:
    """Return every link, command, option and example in the documents that the project does not have."""
    findings = [*_check_structures(root), *_check_letters(root)]
    targets = frozenset(TARGET.findall(_read(root / "Makefile")))
    try:
        load_module("kea")
        commands = load_commands()
    except SourceMissing as error:
        return [*findings, Finding(PACKAGE, 0, f"commands and names in the documents cannot be looked up: {error}")]
    for path in find_documents(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        for piece in walk_pieces(text):
            findings += [Finding(name, piece.line, message) for message in _check_piece(piece, path)]
        for line, command in walk_commands(text):
            findings += [Finding(name, line, message) for message in _check_command(command, targets, commands)]
    return findings


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _check_piece(piece: Piece, path: Path) -> Iterator[str]:
    if piece.language == "link":
        target = piece.text.split("#")[0]
        if target and "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
            yield f"links to {target!r}, which is not there."
    elif piece.language == "span":
        match = NAME.match(piece.text)
        yield from _check_names({match[1]} if match else set())
    elif piece.language in {"python", "py"}:
        yield from _check_example(piece.text)


def _check_example(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"holds Python that does not parse (line {error.lineno} of the block: {error.msg})."
        return
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    yield from _check_names(
        {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "kea"}
    )


def _check_names(names: set[str]) -> Iterator[str]:
    kea = load_module("kea")
    for name in sorted(names):
        if not hasattr(kea, name) and importlib.util.find_spec(f"kea.{name}") is None:
            yield f"names kea.{name}, which the package does not have."


def _check_command(command: str, targets: frozenset[str], commands: CommandTree) -> Iterator[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        return  # a code span that is no command, such as an apostrophe
    if words[:1] == ["make"]:
        for word in words[1:]:
            if re.fullmatch(r"[a-z][\w-]*", word) and word not in targets:
                yield f"names `make {word}`; the Makefile's targets are {', '.join(sorted(targets))}."
    elif words[:1] and words[0].split("/")[-1] == "kea":
        yield from commands.complain(words[1:])


def _check_structures(root: Path) -> Iterator[Finding]:
    """The map of folders has a line for each folder of the package, and for no other."""
    text = _read(root / STRUCTURES)
    if not text:
        yield Finding(STRUCTURES, 0, "is missing: the life of one request and a line per folder belong there.")
        return
    there = {path.name for path in (root / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"}
    section = text.partition(MAP_HEADING)[2].split("\n## ")[0]
    named = set(re.findall(r"^\|\s*`(\w+)/`", section, re.MULTILINE))
    for folder in sorted(there - named):
        yield Finding(
            STRUCTURES, 0, f"has no line for {PACKAGE}/{folder}; add `| `{folder}/` | ... |` below {MAP_HEADING!r}."
        )
    for folder in sorted(named - there):
        yield Finding(STRUCTURES, 0, f"has a line for {PACKAGE}/{folder}, which is not there.")


def _check_letters(root: Path) -> Iterator[Finding]:
    """The shapes written in comments use the letters of the glossary."""
    letters = set(re.findall(r"^\| `([A-Z]\w?)` \|", _read(root / GLOSSARY), re.MULTILINE))
    for source in find_sources(root, PACKAGE):
        for number, line in enumerate(source.text.splitlines(), start=1):
            shape = SHAPE.search(line)
            for letter in sorted(set(LETTER.findall(shape[1] if shape else "")) - letters):
                yield Finding(
                    source.path, number, f"writes a shape with {letter}, a letter that {GLOSSARY} does not have."
                )


if __name__ == "__main__":
    sys.exit(run_check("documents", check_docs))
