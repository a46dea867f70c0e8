"""Holds the sizes of the house style and reports where each room stands.

Limits: 50 lines in a body, 400 in a file, 5 positional parameters, 12 fields in a `...Config`. A body is counted
without its docstring and blank lines, parameters without `self`. Exceptions are named, with a reason and their own
limit, in `tools/exceptions.toml`.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.findings import ROOT, Finding, run_check
from tools.source import Source, find_sources, split_parsable

LIMITS = {"body": 50, "file": 400, "positional": 5, "fields": 12}
UNITS = {"body": "lines in its body", "file": "lines", "positional": "positional parameters", "fields": "fields"}
EXCEPTIONS = "tools/exceptions.toml"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Measure:
    """One size of one thing. `name` is Class.method, or empty for a whole file."""

    path: str
    line: int
    name: str
    rule: str
    value: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.path, self.name, self.rule


def check_sizes(root: Path) -> list[Finding]:
    """Return everything above its limit, and every exception that is malformed or not needed."""
    sources, findings = split_parsable(find_sources(root))
    limits, broken = _read_exceptions(root)
    measures = [measure for source in sources for measure in measure_source(source)]
    for measure in measures:
        limit = limits.get(measure.key, LIMITS[measure.rule])
        if measure.value > limit:
            what = f"{measure.name or 'the file'} has {measure.value} {UNITS[measure.rule]}"
            findings.append(Finding(measure.path, measure.line, f"{what}; the limit is {limit}."))
    return findings + broken + list(_find_unneeded(limits, measures))


def measure_source(source: Source) -> Iterator[Measure]:
    """Yield the sizes of a file, its functions and its configuration classes."""
    lines = source.text.splitlines()
    yield Measure(source.path, 0, "", "file", len(lines))
    for name, node, is_method in _walk_named(source.tree, "", False):
        if isinstance(node, ast.ClassDef):
            if node.name.endswith("Config"):
                num_fields = sum(isinstance(item, ast.AnnAssign) for item in node.body)
                yield Measure(source.path, node.lineno, name, "fields", num_fields)
        else:
            yield Measure(source.path, node.lineno, name, "body", _body_len(node, lines))
            yield Measure(source.path, node.lineno, name, "positional", _num_positional(node, is_method))


def _walk_named(tree: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, FunctionNode | ast.ClassDef, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FunctionNode | ast.ClassDef):
            name = f"{prefix}{node.name}"
            yield name, node, in_class
            yield from _walk_named(node, f"{name}.", isinstance(node, ast.ClassDef))
        else:
            yield from _walk_named(node, prefix, in_class)


def _body_len(node: FunctionNode, lines: list[str]) -> int:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body:
        return 0
    return sum(bool(line.strip()) for line in lines[body[0].lineno - 1 : body[-1].end_lineno])


def _num_positional(node: FunctionNode, is_method: bool) -> int:
    decorators = {item.id for item in node.decorator_list if isinstance(item, ast.Name)}
    takes_self = is_method and "staticmethod" not in decorators
    return len(node.args.posonlyargs) + len(node.args.args) - takes_self


def _read_exceptions(root: Path) -> tuple[dict[tuple[str, str, str], int], list[Finding]]:
    path = root / EXCEPTIONS
    if not path.exists():
        return {}, []
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("exception", [])
    except tomllib.TOMLDecodeError as error:
        return {}, [Finding(EXCEPTIONS, 0, f"is not valid TOML: {error}.")]
    limits: dict[tuple[str, str, str], int] = {}
    findings: list[Finding] = []
    for entry in entries:
        problem = _problem_of(entry)
        if problem:
            findings.append(Finding(EXCEPTIONS, 0, f"the entry for {entry.get('path', 'no path')!r} {problem}"))
        else:
            limits[entry["path"], entry.get("name", ""), entry["rule"]] = entry["limit"]
    return limits, findings


def _problem_of(entry: dict[str, object]) -> str:
    missing = {"path", "rule", "limit", "reason"} - entry.keys()
    if missing:
        return f"lacks {', '.join(sorted(missing))}."
    if entry["rule"] not in LIMITS:
        return f"has rule {entry['rule']!r}; rules are {', '.join(LIMITS)}."
    if not isinstance(entry["limit"], int):
        return f"has limit {entry['limit']!r}; a limit is a whole number."
    return "" if str(entry["reason"]).strip() else "gives no reason."


def _find_unneeded(limits: dict[tuple[str, str, str], int], measures: list[Measure]) -> Iterator[Finding]:
    values = {measure.key: measure.value for measure in measures}
    for path, name, rule in limits:
        value = values.get((path, name, rule))
        if value is None or value <= LIMITS[rule]:
            state = "is not there" if value is None else f"keeps the usual limit of {LIMITS[rule]}"
            yield Finding(EXCEPTIONS, 0, f"{path} {name} ({rule}) {state}; delete its entry.")


def create_report(root: Path) -> str:
    """Return a table, a line per folder: files, lines, functions, and its bodies' median, ninth decile and longest."""
    rows = ["folder                 files  lines  functions  median  p90  longest"]
    folders: dict[str, list[Source]] = {}
    for source in split_parsable(find_sources(root))[0]:
        folders.setdefault("/".join(Path(source.path).parent.parts[:3]), []).append(source)
    for folder, sources in sorted(folders.items()):
        rows.append(_report_row(folder, [measure for source in sources for measure in measure_source(source)]))
    return "\n".join(rows)


def _report_row(folder: str, measures: list[Measure]) -> str:
    files = [measure.value for measure in measures if measure.rule == "file"]
    bodies = sorted((measure.value, measure.name) for measure in measures if measure.rule == "body")
    lens = [value for value, _ in bodies]
    median = f"{statistics.median(lens):.0f}" if lens else "-"
    p90 = f"{lens[int(0.9 * (len(lens) - 1))]}" if lens else "-"
    longest = f"{bodies[-1][0]} {bodies[-1][1]}" if bodies else "-"
    return f"{folder:22} {len(files):5} {sum(files):6} {len(bodies):10} {median:>7} {p90:>4}  {longest}"


if __name__ == "__main__":
    if "--report" in sys.argv[1:]:
        print(create_report(ROOT))
    sys.exit(run_check("sizes", check_sizes))
