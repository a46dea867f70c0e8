"""The rooms of the design as data: their order, what each must not know, and who may read the environment."""

from __future__ import annotations

FRONT_DOOR = ""  # kea/__init__.py: what application authors import

# Lowest first. A room imports rooms of earlier layers only, never one of its own layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("types",),
    ("kernels",),
    ("program", "memory", "attention", "store"),
    ("models", "encoder"),
    ("engine",),
    ("cluster", "retrieval"),
    ("scheduler",),
    ("service",),
    ("client", "server"),
    (FRONT_DOOR,),
    ("bench",),
    ("cli",),
    ("__main__",),  # python -m kea
)

TENSORS = frozenset({"torch", "transformers", "triton", "numba"})
HTTP = frozenset({"starlette", "uvicorn", "httpx2", "http", "urllib", "h11"})
CLOCKS = frozenset({"time", "datetime", "sched", "asyncio", "anyio", "threading", "concurrent"})
CHANCE = frozenset({"random", "secrets", "uuid"})
FILES = frozenset({"os", "io", "pathlib", "tempfile", "shutil", "sqlite3"})
PROCESSES = frozenset({"socket", "ssl", "subprocess", "multiprocessing"})
PURE = TENSORS | HTTP | CLOCKS | CHANCE | FILES | PROCESSES

# By dotted prefix: the top-level modules that may not be imported anywhere below it, not even inside a function.
FORBIDDEN: dict[str, frozenset[str]] = {
    "kea.errors": PURE,
    "kea.types": PURE,
    "kea.program": PURE,
    "kea.memory": PURE,
    "kea.scheduler": PURE,
    "kea.kernels": HTTP | frozenset({"torch", "transformers", "triton"}),
    "kea.attention": HTTP,
    "kea.models": HTTP,
    "kea.engine": HTTP,
    "kea.retrieval": HTTP,
    "kea.encoder": HTTP,
    "kea.store": TENSORS | HTTP,
    "kea.service": HTTP,
    "kea.server": TENSORS,
    "kea.client": TENSORS | frozenset({"starlette", "uvicorn"}),
}

# Calls that reach files without an import; forbidden where FILES are.
FILE_CALLS = frozenset({"open", "input"})

# The environment is read here only.
ENVIRONMENT_READERS = frozenset({"cli"})


def level_of(room: str) -> int | None:
    """Return the layer of a room, lowest 0, or None for a room that the table does not know."""
    return next((level for level, rooms in enumerate(LAYERS) if room in rooms), None)


def forbidden_for(module: str) -> frozenset[str]:
    """Return the top-level modules that `module` (dotted) may not import."""
    found = [names for prefix, names in FORBIDDEN.items() if module == prefix or module.startswith(prefix + ".")]
    return frozenset().union(*found)
