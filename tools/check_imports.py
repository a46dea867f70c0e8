"""Holds the order of the rooms: imports go downward only, and pure rooms know no tensors, clocks or devices.

The rules are data in `tools/rooms.py`. Imports inside functions and under TYPE_CHECKING count: knowing is knowing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding, run_check
from tools.rooms import ENVIRONMENT_READERS, FILE_CALLS, FILES, FRONT_DOOR, forbidden_for, level_of
from tools.source import PACKAGE, Source, find_sources, split_parsable, walk_imports

ROOT_NAMES = frozenset({"__version__"})  # what a room may take from the package's own front door


def check_imports(root: Path) -> list[Finding]:
    """Return every import of the package that goes upward or sideways, or reaches what its room must not know."""
    sources, findings = split_parsable(find_sources(root, PACKAGE))
    if not sources and not findings:
        return [Finding(PACKAGE, 0, "holds no Python files; run this from a checkout of the project.")]
    for source in sources:
        findings += _check_source(source)
    return findings


def _check_source(source: Source) -> Iterator[Finding]:
    room = _room_of(source.module)
    if level_of(room) is None:
        yield Finding(source.path, 0, f"is in room {room!r}, which tools/rooms.py does not place in a layer.")
        return
    for line, module, names in walk_imports(source.tree):
        for message in _complaints(source.module, room, module, names):
            yield Finding(source.path, line, message)
    yield from _check_calls(source, room)


def _room_of(module: str) -> str:
    """The room of a dotted module of ours: kea.engine.base is in engine; the package itself is in ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FRONT_DOOR


def _complaints(module: str, room: str, target: str, names: tuple[str, ...]) -> Iterator[str]:
    if target.startswith("."):
        yield f"imports {target!r} relatively; write the full name, so that the order of rooms can be read."
    elif target == "kea" or target.startswith("kea."):
        yield from _complaints_inside(room, target, names)
    elif target.split(".")[0] in forbidden_for(module):
        yield f"imports {target!r}, which room {room!r} must not know (tools/rooms.py)."


def _complaints_inside(room: str, target: str, names: tuple[str, ...]) -> Iterator[str]:
    others = {_room_of(target)} if target != "kea" else {_room_behind(name) for name in names or (FRONT_DOOR,)}
    for other in sorted(name for name in others if name is not None and name != room):
        level, other_level = level_of(room), level_of(other)
        shown = f"room {other!r}" if other else "the package itself"
        if level is None or other_level is None:
            yield f"imports {shown}, which tools/rooms.py does not place in a layer."
        elif other_level == level:
            yield f"imports {shown} of its own layer; share through a lower layer or join them in a higher one."
        elif other_level > level:
            yield f"imports {shown}, which lies above {room!r}; imports go downward only."


def _room_behind(name: str) -> str | None:
    """The room that `from kea import name` reaches; None for what every room may take from the front door."""
    if name in ROOT_NAMES:
        return None
    return name if level_of(name) is not None else FRONT_DOOR


def _check_calls(source: Source, room: str) -> Iterator[Finding]:
    is_pure = forbidden_for(source.module) >= FILES
    for node in ast.walk(source.tree):
        if is_pure and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FILE_CALLS:
            yield Finding(
                source.path, node.lineno, f"calls {node.func.id}(); room {room!r} does no I/O, pass the data in."
            )
        if room not in ENVIRONMENT_READERS and isinstance(node, ast.Attribute) and _reads_environment(node):
            yield Finding(
                source.path, node.lineno, "reads the environment; that is done in `cli` only, pass the value in."
            )


def _reads_environment(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in {"environ", "getenv", "environb"}


if __name__ == "__main__":
    sys.exit(run_check("imports", check_imports))
