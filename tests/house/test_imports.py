"""The order of the rooms holds, and the check that says so sees a planted violation of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_imports import check_imports
from tools.findings import ROOT


def plant(root: Path, path: str, text: str) -> None:
    target = root / "src" / "kea" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def messages(root: Path) -> list[str]:
    return [str(finding) for finding in check_imports(root)]


def test_the_project_keeps_its_order() -> None:
    assert messages(ROOT) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("program/graph.py", "import kea.engine.base\n", "program/graph.py:1: imports room 'engine', which lies above"),
        ("program/graph.py", "from kea.memory import pages\n", "imports room 'memory' of its own layer"),
        (
            "engine/batcher.py",
            "def f():\n    from kea.service import x\n",
            "engine/batcher.py:2: imports room 'service'",
        ),
        ("memory/pages.py", "import torch\n", "imports 'torch', which room 'memory' must not know"),
        ("memory/pages.py", "def f():\n    import torch.nn\n", "pages.py:2: imports 'torch.nn'"),
        ("scheduler/order.py", "from time import monotonic\n", "imports 'time', which room 'scheduler'"),
        ("program/graph.py", "import socket\n", "imports 'socket', which room 'program'"),
        ("program/graph.py", "def f(p):\n    return open(p)\n", "graph.py:2: calls open(); room 'program' does no I/O"),
        ("server/app.py", "import torch\n", "imports 'torch', which room 'server' must not know"),
        ("server/app.py", "from kea.client import Session\n", "imports room 'client' of its own layer"),
        ("server/app.py", "import kea\n", "imports the package itself, which lies above 'server'"),
        ("server/app.py", "from kea import function\n", "imports the package itself, which lies above 'server'"),
        ("engine/app.py", "from kea import server\n", "imports room 'server', which lies above 'engine'"),
        ("engine/a.py", "from . import b\n", "relatively"),
        ("engine/a.py", "import os\nx = os.environ['A']\n", "a.py:2: reads the environment"),
        ("utils/a.py", "", "is in room 'utils', which tools/rooms.py does not place"),
        ("engine/a.py", "from kea.utils import a\n", "which tools/rooms.py does not place"),
        ("engine/a.py", "def (:\n", "is not valid Python"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    plant(tmp_path, path, text)
    found = messages(tmp_path)
    assert len(found) == 1, found
    assert expected in found[0]


def test_what_the_order_allows_is_left_alone(tmp_path: Path) -> None:
    plant(tmp_path, "__init__.py", "from kea.client import connect\nfrom kea.errors import KeaError\n")
    plant(tmp_path, "server/app.py", "from kea import __version__\nfrom kea.service import Service\nimport starlette\n")
    plant(
        tmp_path, "engine/runner.py", "import time, torch\nfrom kea import errors\nfrom kea.engine.base import Engine\n"
    )
    plant(tmp_path, "cli/main.py", "import os\nimport kea\nfrom kea.bench import load\nx = os.environ\n")
    plant(
        tmp_path, "program/graph.py", "import re\nfrom kea.types import Sampling\nfrom kea.program.call import Call\n"
    )
    assert messages(tmp_path) == []


def test_an_empty_folder_is_told_apart_from_a_clean_one(tmp_path: Path) -> None:
    assert "holds no Python files" in messages(tmp_path)[0]
