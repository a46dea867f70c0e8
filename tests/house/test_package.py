"""What `import kea` loads, what rooms load, and what the wheel carries."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

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
    command = [sys.executable, "-c", code, *arguments]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


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


def test_the_wheel_carries_every_file_of_the_package(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("kea_serve-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {path.removeprefix("src/") for path in tracked_files("src/kea")}
    assert "kea/py.typed" in packed
    assert tracked <= packed
    assert all(name.startswith("kea/") for name in packed)


def test_the_wheel_names_its_licence_and_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("kea_serve-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        texts = {
            name.split(".dist-info/")[-1]: packed.read(name).decode()
            for name in packed.namelist()
            if ".dist-info/" in name
        }
    assert "kea = kea.cli:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "Apache License" in texts["licenses/LICENSE"]


def tracked_files(folder: str) -> list[str]:
    command = ["git", "ls-files", "-z", folder]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).exists()]
