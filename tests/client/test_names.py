"""The public names of `kea` are permanent: they are listed here, and each is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kea

NAMES = [
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


def test_every_name_is_there() -> None:
    assert kea.__all__ == NAMES
    assert dir(kea) == sorted(NAMES)
    for name in NAMES:
        assert getattr(kea, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kea.nothing


def test_writing_an_application_loads_neither_service_nor_http() -> None:
    code = "import sys, kea; [getattr(kea, name) for name in kea.__all__]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(result.stdout.split()) & {"torch", "kea.service", "kea.engine", "httpx2", "pydantic"} == set()


def test_importing_kea_alone_loads_nothing_of_it() -> None:
    code = "import sys, kea; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {name for name in result.stdout.split() if name.startswith("kea")} == {"kea"}
