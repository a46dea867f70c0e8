"""What `import kea` loads, what rooms load, and what the wheel carries."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from tools.findings import ROOT
from tools.rooms import FORBIDDEN, TENSORS

HEAVY = {"torch", "transformers", "tokenizers", "llguidance", "starlette", "uvicorn", "prometheus_client", "ray"}
UPPER = {"kea.server", "kea.bench", "kea.cli"}

IMPORT_ROOM = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(room, "__path__", []), sys.argv[1] + "."):
    importlib.import_module(module.name)
print("\\n".join(sys.modules))
"""


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The modules that are loaded once the code, which prints them, has run in a process of its own."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_import_kea_loads_neither_torch_nor_the_server() -> None:
    loaded = loaded_by("import sys, kea; [getattr(kea, n) for n in kea.__all__]; print(*sys.modules)")
    assert "kea" in loaded
    assert loaded & (HEAVY | UPPER) == set()


def find_tensorless_rooms() -> list[str]:
    """The rooms that stand and may not know tensors (the table also names rooms that are not built yet)."""
    rooms = sorted(room for room, names in FORBIDDEN.items() if names >= TENSORS)
    return [room for room in rooms if any((ROOT / "src").glob(f"{room.replace('.', '/')}*"))]


@pytest.mark.parametrize("room", find_tensorless_rooms())
def test_rooms_that_know_no_tensors_load_none(room: str) -> None:
    loaded = loaded_by(IMPORT_ROOM, room)
    assert room in loaded
    assert loaded & TENSORS == set()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel by name; those of its metadata by their name below .dist-info."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("kea_serve-*.whl")
    with zipfile.ZipFile(path) as wheel:
        return {name.split(".dist-info/")[-1]: wheel.read(name) for name in wheel.namelist()}


def test_the_wheel_carries_every_file_of_the_package_and_no_other(packed: dict[str, bytes]) -> None:
    tracked = {path.removeprefix("src/") for path in tracked_files("src/kea")}
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert "kea/py.typed" in tracked
    assert tracked <= packed.keys()
    assert [name for name in packed.keys() - metadata if not name.startswith("kea/")] == []


def test_the_wheel_names_its_licence_and_command(packed: dict[str, bytes]) -> None:
    assert b"kea = kea.cli:main" in packed["entry_points.txt"]
    assert b"License-Expression: Apache-2.0" in packed["METADATA"]
    assert b"Apache License" in packed["licenses/LICENSE"]


def tracked_files(folder: str) -> list[str]:
    command = ["git", "ls-files", "-z", folder]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).exists()]
