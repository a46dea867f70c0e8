"""Kept kernels: found by another checkout of the same contents, never where they could be another user's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kea.kernels.caching import MAX_VERSIONS, KernelFile, _make_room

KERNEL = """
from kea.kernels.jit import compiled

@compiled()
def times(x):
    return {factor} * x

print(times(21), sum(times.stats.cache_hits.values()))
"""


def run(folder: Path, home: Path, factor: int = 2) -> tuple[str, str]:
    """Run a kernel in a process of its own: its result and how often its code was found, and what was logged."""
    folder.mkdir(exist_ok=True)
    (folder / "kernel.py").write_text(KERNEL.format(factor=factor))
    env = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "kernel.py"], cwd=folder, env=env, text=True, capture_output=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_a_second_checkout_of_the_same_contents_starts_warm(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(tmp_path / "first", home) == ("42 0", "")
    assert run(tmp_path / "second", home) == ("42 1", "")
    assert run(tmp_path / "third", home, factor=3) == ("63 0", "")
    assert run(tmp_path / "first", home) == ("42 0", "")  # the other contents took its place in the index
    assert not list(tmp_path.glob("*/__pycache__/*.nbi"))
    (kept,) = (home / ".cache" / "kea" / "kernels").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_machine_code_that_another_user_could_have_written_is_not_run(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    run(tmp_path / "first", home)
    (home / ".cache" / "kea" / "kernels").chmod(mode)
    said, logged = run(tmp_path / "first", home)
    assert said == "42 0"
    assert "others may write to" in logged
    assert list((tmp_path / "first" / "__pycache__").glob("*.nbi"))
    assert run(tmp_path / "first", home)[0] == "42 1"  # kept beside the module


def test_a_home_that_cannot_be_written_leaves_kernels_beside_the_module(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    said, logged = run(tmp_path / "first", tmp_path / "home")
    assert said == "42 0"
    assert "kept beside the package" in logged
    assert run(tmp_path / "first", tmp_path / "home")[0] == "42 1"


def test_two_writers_of_one_index_never_take_each_others_code(tmp_path: Path) -> None:
    first, second = (KernelFile(str(tmp_path), "kernel", "stamp") for _ in range(2))
    first.save("int64", "code for int64")
    second._save_index({})  # as a writer leaves it that had read the index before the first one wrote
    second.save("float64", "code for float64")
    first.save("int64", "code for int64")
    assert [first.load(key) for key in ("int64", "float64")] == ["code for int64", "code for float64"]


def test_versions_that_were_not_used_for_longest_are_removed(tmp_path: Path) -> None:
    for age in range(MAX_VERSIONS + 4):
        (tmp_path / str(age)).mkdir()
        os.utime(tmp_path / str(age), (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "0")
    _make_room(tmp_path)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(MAX_VERSIONS))
    for age in range(MAX_VERSIONS, MAX_VERSIONS + 4):
        (tmp_path / str(age)).mkdir()  # used now, all within a day of each other
    for path in tmp_path.iterdir():
        os.utime(path)
    _make_room(tmp_path)
    assert len(list(tmp_path.iterdir())) == MAX_VERSIONS + 4


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("keep", [0, -1])
def test_a_damaged_file_is_compiled_anew(pattern: str, keep: int, tmp_path: Path) -> None:
    """As a crash leaves it: empty, or with its last bytes missing."""
    home = tmp_path / "home"
    run(tmp_path / "first", home)
    (folder,) = (home / ".cache" / "kea" / "kernels").iterdir()
    (damaged,) = folder.glob(f"kernel.times-{pattern}")
    damaged.write_bytes(damaged.read_bytes()[:keep])
    said, logged = run(tmp_path / "first", home)
    assert said == "42 0"
    assert "is damaged" in logged
    assert run(tmp_path / "first", home) == ("42 1", "")


def test_a_disk_that_is_full_keeps_nobody_from_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = KernelFile(str(tmp_path), "kernel", "stamp")

    def full(_path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "_open_for_write", full)
    file.save("int64", "code for int64")
    assert file.load("int64") is None
    assert "No space left on device" in caplog.text


NAMED_ALIKE = """
import sys
import numpy as np
from kea.kernels.jit import compiled

def step_of(factor):
    @compiled()
    def step(values, first):
        total = 0.0
        for i in range(first, values.shape[0]):
            x = values[i]
            for _ in range(3):
                x = np.sqrt(x * x + 1.0) if x < 2.0 else np.exp(-x) + np.log(x) * np.sin(x) / np.cosh(x)
            total += x
            for j in range(i):
                total += np.floor(values[j]) * 0.0
        return factor + 0.0 * total
    return step

two_of, five_of = step_of(2.0), step_of(5.0)

@compiled()
def two(values):
    return sum((two_of(values, 0), two_of(values, 1), two_of(values, 2), two_of(values, 3)))

@compiled()
def five(values):
    return sum((five_of(values, 0), five_of(values, 1), five_of(values, 2), five_of(values, 3)))

values = np.linspace(1.0, 2.0, 9)
print(*(function(values) for function in (two, five) if function.__name__ in sys.argv))
"""


def test_functions_of_one_name_that_different_processes_compiled_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(NAMED_ALIKE)
    env = {**os.environ, "HOME": str(tmp_path / "home")}
    for names, said in ((["two"], "8.0"), (["five"], "20.0"), (["two", "five"], "8.0 20.0")):
        command = [sys.executable, "kernel.py", *names]
        done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, check=True)
        assert done.stdout.strip() == said
