"""The page of configuration: the fields of every public `...Config` dataclass, read without importing any module."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tools.findings import ROOT
from tools.loading import SourceMissing
from tools.reference.page import Page, format_table
from tools.source import PACKAGE, Source, find_sources, split_parsable


def render_configuration() -> str:
    """Return a section per configuration class, ordered by module."""
    sources = split_parsable(find_sources(ROOT, PACKAGE))[0]
    sections = [section for source in sources for section in _sections(source)]
    if not sections:
        raise SourceMissing("no module of the package has a class named ...Config.")
    return "\n\n".join(sections)


def _sections(source: Source) -> Iterator[str]:
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and not node.name.startswith("_"):
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            table = format_table(["Field", "Type", "Default"], [_row(item) for item in fields])
            docstring = " ".join((ast.get_docstring(node) or "").split())
            yield f"## `{source.module}.{node.name}`\n\n{docstring}\n\n{table}"


def _row(item: ast.AnnAssign) -> list[str]:
    default = f"`{ast.unparse(item.value)}`" if item.value is not None else "required"
    return [f"`{ast.unparse(item.target)}`", f"`{ast.unparse(item.annotation)}`", default]


PAGE = Page("configuration.md", "Configuration", render_configuration)
