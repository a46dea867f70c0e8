"""Kea serves LLM applications: programs of prompts connected by semantic variables.

Importing this package imports neither torch nor the server. What authors use is loaded when it is first named.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import is most of what the command `kea` waits for before it takes Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from kea import errors
    from kea.client import (
        LATENCY,
        THROUGHPUT,
        TPOT,
        TTFT,
        Connection,
        Input,
        Output,
        Rendered,
        SemanticFunction,
        Session,
        Variable,
        agather,
        connect,
        create_connection,
        function,
        gather,
    )
    from kea.errors import KeaError
    from kea.types import Criteria

__version__ = "0.1.0"

__all__ = [
    "LATENCY",
    "THROUGHPUT",
    "TPOT",
    "TTFT",
    "Connection",
    "Criteria",
    "Input",
    "KeaError",
    "Output",
    "Rendered",
    "SemanticFunction",
    "Session",
    "Variable",
    "__version__",
    "agather",
    "connect",
    "create_connection",
    "errors",
    "function",
    "gather",
]

_HOMES = {"Criteria": "kea.types", "KeaError": "kea.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kea' has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("kea.errors")
    value = getattr(import_module(_HOMES.get(name, "kea.client")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
