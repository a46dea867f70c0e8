"""What is compiled is for what numba compiles for, and asks the system for nothing before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kea.kernels import tiles

ROOT = Path(__file__).parents[2]

PRODUCT = """
import numpy as np
from kea.kernels.tiles import has_tiles
from kea.kernels.vectors import WIDTH
from tests.kernels.test_matrix import NONE, multiply, weights

x = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
for kind in range(3):
    matrix = weights((50, 70), kind)
    assert np.allclose(multiply(matrix, NONE, x), x @ matrix.rows(np.arange(50)).T, atol=1e-3)
print(has_tiles(), WIDTH)
"""


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize(
    "setting", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": "+avx2,+fma"}, {"NUMBA_ENABLE_AVX": "0"}]
)
def test_kernels_use_no_more_of_the_processor_than_numba_is_told_to(setting: dict[str, str], tmp_path: Path) -> None:
    """An instruction beyond that would end the process while it compiles."""
    assert run(PRODUCT, HOME=str(tmp_path), **setting) == "False 8"


def test_an_import_asks_the_system_for_no_tiles() -> None:
    code = "import kea.models.lean; from kea.kernels.tiles import has_tiles; print(has_tiles.cache_info().currsize)"
    assert run(code) == "0"


def test_a_system_that_refuses_tiles_gets_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def syscall(*_arguments: int) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda _name: Refusing)
    assert not tiles.has_tiles.__wrapped__()


@pytest.mark.parametrize(("system", "processor"), [("win32", "AMD64"), ("darwin", "arm64"), ("linux", "aarch64")])
def test_other_systems_are_not_asked(system: str, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("ctypes.CDLL", None)
    assert not tiles.has_tiles.__wrapped__()
