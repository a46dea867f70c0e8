"""Fixtures of the model tests: tiny models on disk, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.models.families import save_model


@pytest.fixture(scope="session")
def family_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of a family's tiny model, written on first use."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: save_model(name, root))
