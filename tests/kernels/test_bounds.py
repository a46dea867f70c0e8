"""No kernel reads or writes beyond the arrays that it was given: behind and before them is nobody's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.guarded import guarded_zeros

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.bounds", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("what", ["products", "attention"])
def test_kernels_stay_within_their_arrays(what: str) -> None:
    run(what)


@pytest.mark.parametrize("at_end", [True, False])
def test_a_guarded_array_is_guarded(at_end: bool) -> None:
    """The tests above could not fail otherwise."""
    code = f"""
import ctypes
from tests.kernels.guarded import guarded_zeros
array = guarded_zeros((3, 5), "float32", at_end={at_end})
ctypes.string_at(array.ctypes.data + {60 if at_end else -1}, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode < 0
    assert guarded_zeros((3, 5), np.float32, at_end=at_end).tolist() == np.zeros((3, 5)).tolist()
