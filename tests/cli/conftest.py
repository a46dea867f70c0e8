"""A server that the tests of commands share: `kea serve` on the small trained Llama, in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kea.models import require_embedded_model
from tests.cli.support import Served, serve


@pytest.fixture(scope="package")
def served(stories260k: Path) -> Iterator[Served]:
    with serve(str(stories260k), "--kv-memory", "16MiB", "--served-model-name", "stories") as server:
        yield server


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded model, which is part of the repository."""
    return require_embedded_model()
