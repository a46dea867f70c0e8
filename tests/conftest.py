"""What all tests share: where the data beside the checkout lies, no network, and hypothesis without a clock."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from kea.kernels.shelf import Shelf

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Tests run side by side and their models are tiny: threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may wait for a hub: what is not on this machine is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# Where there is no GPU, Triton's kernels run in its interpreter. It has to be told before they are imported.
if not Path("/dev/nvidiactl").exists() and shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that runs the tests in the background has them ignore SIGINT, and every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared with whatever else runs, so a slow example is no failure; the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")


def require_shared(*parts: str) -> Path:
    """Return a path below ../shared; skip the test, with the reason, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('shared', *parts))} beside the checkout, which is not there")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep notes of the tests' models out of the user's, and those of earlier runs out of the tests. Compiled kernels
    are shared: they are what the code says, whoever compiled them.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shelves")
        patch.setattr("kea.models.notes.user_shelf", lambda name, max_bytes: Shelf(folder / name, max_bytes))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of data beside the checkout."""
    return require_shared()


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """A small trained Llama (260K parameters, context 512) as a Hugging Face directory."""
    return require_shared("models", "stories260k")


@pytest.fixture(scope="session")
def parrot_wire() -> Path:
    """The recorded requests of Parrot's original client."""
    return require_shared("facts", "parrot_wire.jsonl")
