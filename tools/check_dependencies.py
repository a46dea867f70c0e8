"""Holds the imports of the package to what pyproject.toml declares, both ways.

What a module imports when it loads is a base dependency; what it imports inside a function may belong to an extra. A
base dependency that nothing imports is reported, unless INDIRECT says what needs it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.findings import Finding, run_check
from tools.source import PACKAGE, Source, find_sources, split_parsable

PROJECT = "pyproject.toml"
# Distributions whose module has another name.
MODULES = {
    "faiss-cpu": "faiss",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
# Base dependencies that the package needs without importing them, and what for.
INDIRECT = {
    "jinja2": "transformers renders chat templates with it",
    "safetensors": "transformers reads checkpoints with it",
}
# Modules that come with a declared distribution and are used inside functions only.
PROVIDED = {"triton": "torch's builds for CUDA bring it"}
# Modules of kernels: decorated when they load, by a library of an extra. They are imported inside functions themselves.
KERNELS = {
    "src/kea/attention/triton_kernels.py": "triton",
    "src/kea/models/lean/triton_kernels.py": "triton",
}
DEVELOPMENT = frozenset({"dev"})
# Scripts that a peer's own python runs, and what only that python has.
PEER_SCRIPTS = "src/kea/bench/engine/drivers/"
PEERS = frozenset({"llama_cpp", "openvino", "openvino_genai", "vllm"})


def check_dependencies(root: Path) -> list[Finding]:
    """Return every undeclared import of the package and every base dependency without a use."""
    base, extras = read_declared(root)
    sources, findings = split_parsable(find_sources(root, PACKAGE))
    used: set[str] = set()
    for source in sources:
        for line, module, is_late in _walk_foreign(source):
            used.add(module)
            if module in PEERS and source.path.startswith(PEER_SCRIPTS):
                continue
            may_be_extra = is_late or KERNELS.get(source.path) == module
            if module not in base and not (may_be_extra and (module in extras or module in PROVIDED)):
                findings.append(Finding(source.path, line, _complaint(module, extras)))
    for module in sorted(base - used - INDIRECT.keys()):
        findings.append(Finding(PROJECT, 0, f"declares {module!r}, which the package does not import; take it out."))
    return findings


def read_declared(root: Path) -> tuple[set[str], set[str]]:
    """Return the modules of the base dependencies and those of the extras, without the tools of development."""
    project = tomllib.loads((root / PROJECT).read_text(encoding="utf-8"))["project"]
    extras = {key: items for key, items in project.get("optional-dependencies", {}).items() if key not in DEVELOPMENT}
    return _modules(project["dependencies"]), _modules(item for items in extras.values() for item in items)


def _modules(requirements: Iterable[str]) -> set[str]:
    names = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def _complaint(module: str, extras: set[str]) -> str:
    if module in extras:
        return f"imports {module!r} when it loads; it belongs to an extra, so import it in the function that needs it."
    return f"imports {module!r}, which {PROJECT} declares neither as a base dependency nor in an extra."


def _walk_foreign(source: Source) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, top-level module, is in a function) of imports that are neither ours nor the standard library's."""
    for node, is_late in _walk_scoped(source.tree, False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if node.level == 0 else []
        for module in {name.split(".")[0] for name in names} - {"kea", ""} - sys.stdlib_module_names:
            yield node.lineno, module, is_late


def _walk_scoped(tree: ast.AST, is_late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, is_late
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk_scoped(node, is_late or is_function or _is_for_types(node))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


if __name__ == "__main__":
    sys.exit(run_check("dependencies", check_dependencies))
