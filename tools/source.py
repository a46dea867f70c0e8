"""The project's Python files as syntax trees. Owns which folders are code; knows no rule about them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.findings import Finding

FOLDERS = ("src", "tests", "tools", "training")
PACKAGE = "src/kea"


@dataclass(frozen=True)
class Source:
    """One Python file. `path` is relative to the root, with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @property
    def module(self) -> str:
        """The dotted name it is imported by: src/kea/engine/base.py is kea.engine.base."""
        parts = Path(self.path).with_suffix("").parts
        parts = parts[1:] if parts[0] == "src" else parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_sources(root: Path, *folders: str) -> list[Source]:
    """Read every Python file below the given folders (all folders of code by default), in a stable order."""
    paths = sorted(path for folder in folders or FOLDERS for path in (root / folder).rglob("*.py"))
    return [Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def split_parsable(sources: list[Source]) -> tuple[list[Source], list[Finding]]:
    """Separate the files that parse from findings about those that do not."""
    parsed: list[Source] = []
    broken: list[Finding] = []
    for source in sources:
        try:
            _ = source.tree
            parsed.append(source)
        except SyntaxError as error:
            broken.append(Finding(source.path, error.lineno or 0, f"is not valid Python: {error.msg}"))
    return parsed, broken


def walk_imports(tree: ast.Module) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield (line, module, names) of every import, also those inside functions; `names` is empty for `import x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield node.lineno, name, tuple(alias.name for alias in node.names)
