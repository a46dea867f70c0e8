"""The limits of a container: memory and cores that the machine has, but this process may not use."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.engine import machine
from kea.engine.containers import try_cores, try_memory_room

MIB = 1024 * 1024


class Groups:
    """A file system of control groups, and the process in it."""

    def __init__(self, folder: Path, own: str) -> None:
        self.root, self.own = folder / "groups", folder / "own"
        self.own.write_text(own + "\n")

    def write(self, group: str, files: dict[str, object]) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")

    @property
    def limits(self) -> tuple[int | None, int | None]:
        return try_memory_room(self.root, self.own), try_cores(self.root, self.own)


def memory(limit: object, usage: int, droppable: int = 0) -> dict[str, object]:
    return {
        "memory.max": limit,
        "memory.current": usage,
        "memory.stat": f"anon {usage}\ninactive_file {droppable}\nactive_file 7",
    }


def test_a_container_sees_its_limits_at_the_root(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/")
    groups.write("", memory(512 * MIB, 300 * MIB, 50 * MIB) | {"cpu.max": "250000 100000"})
    assert groups.limits == (262 * MIB, 2)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/user.slice/run.scope")
    groups.write("user.slice", memory(100 * MIB, 90 * MIB) | {"cpu.max": "50000 100000"})
    groups.write("user.slice/run.scope", memory("max", 5 * MIB) | {"cpu.max": "max 100000"})
    assert groups.limits == (10 * MIB, 1)


def test_groups_of_version_1(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc")
    groups.write("cpu", {"cpu.cfs_quota_us": 300_000, "cpu.cfs_period_us": 100_000})
    files = {
        "memory.limit_in_bytes": 64 * MIB,
        "memory.usage_in_bytes": 70 * MIB,
        "memory.stat": "total_inactive_file 5",
    }
    groups.write("memory", files)
    assert groups.limits == (0, 3)


def test_no_limit_is_none(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/a")
    groups.write("a", memory("max", 5) | {"cpu.max": "max 100000"})
    assert groups.limits == (None, None)
    groups.own.write_text("4:cpu:/\n")
    groups.write("cpu", {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000})
    assert groups.limits == (None, None)
    groups.own.unlink()
    assert groups.limits == (None, None)


def test_an_engine_keeps_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "try_cores", lambda: None)
    monkeypatch.setattr(machine, "try_memory_room", lambda: None)
    num_cores, free = machine.num_cores(), machine.free_memory_bytes("cpu")
    assert num_cores >= 1
    monkeypatch.setattr(machine, "try_cores", lambda: 1)
    monkeypatch.setattr(machine, "try_memory_room", lambda: 77 * MIB)
    assert machine.num_cores() == 1
    if Path("/proc/meminfo").exists():
        assert machine.free_memory_bytes("cpu") == min(free, 77 * MIB)
