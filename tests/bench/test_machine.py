"""What the head of a report says of the machine and the installation."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path

from kea.bench.machine import OtherWork, read_machine, read_versions


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.cpu
    assert 1 <= machine.num_cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes is None or machine.memory_bytes > 2**20
    assert machine.os


def test_the_files_are_read(tmp_path: Path) -> None:
    cpuinfo, release = tmp_path / "cpuinfo", tmp_path / "release"
    cpuinfo.write_text("processor : 0\nmodel name\t: Fast One @ 3 GHz\n")
    release.write_text('ID=x\nPRETTY_NAME="Some System 12"\n')
    machine = read_machine(cpuinfo, release)
    assert machine.cpu == "Fast One @ 3 GHz"
    assert machine.os.startswith("Some System 12, ")


def test_a_machine_without_the_files_has_names_too(tmp_path: Path) -> None:
    machine = read_machine(tmp_path / "a", tmp_path / "b")
    assert machine.cpu
    assert machine.os


def test_what_others_take_of_the_cores_is_told_and_own_work_is_not(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    cores = sorted(os.sched_getaffinity(0))

    def tick(num_busy: int) -> None:
        lines = [f"cpu{core} {num_busy} 0 0 12345 7 0 0 {num_busy} 3 3" for core in cores]
        stat.write_text("\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *lines, "intr 5"]), encoding="utf-8")

    tick(0)
    others = OtherWork(stat)
    began_s = time.process_time()
    while time.process_time() - began_s < 0.02:
        pass
    assert others.share() == 0.0
    tick(10**6)
    assert others.share() == 1.0
    assert OtherWork(tmp_path / "none").share() is None


def test_versions() -> None:
    versions = read_versions("9.9", ("rich", "no-such-package"))
    assert versions["kea"] == "9.9"
    assert versions["rich"] == version("rich")
    assert versions["no-such-package"] == "not installed"
