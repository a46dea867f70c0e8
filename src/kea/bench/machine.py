"""What this machine and this installation are, as the head of a report. Knows nothing of what is measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kea.bench.base import Machine


def read_machine(cpuinfo: Path = Path("/proc/cpuinfo"), os_release: Path = Path("/etc/os-release")) -> Machine:
    """Read the processor, cores allowed to this process, memory and system; a fact that is not there is None."""
    return Machine(
        cpu=_cpu_model(cpuinfo),
        num_cores=_num_cores(),
        memory_bytes=_memory_bytes(),
        os=_os_name(os_release),
        load_average=_load_average(),
    )


class OtherWork:
    """How much of the cores' time other processes take, from its making on. This process's own children are not others
    once they have ended and were waited for.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(stat), _own_s()

    def share(self) -> float | None:
        """Return their share of the time of the cores allowed to this process, 0 to 1; None where unknown."""
        busy_s = _busy_s(self._stat)
        if busy_s is None or self._busy_s is None:
            return None
        taken_s = busy_s - self._busy_s - (_own_s() - self._own_s)
        return min(1.0, max(0.0, taken_s / (_num_cores() * max(1e-3, time.monotonic() - self._began_s))))


def read_versions(own: str, packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Kea (`own`), python and each package; one that is not there reads "not installed"."""
    versions = {"kea": own, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _cpu_model(cpuinfo: Path) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _busy_s(stat: Path) -> float | None:
    """Return the seconds in which the cores allowed to this process computed, for anybody, or were taken away."""
    if not stat.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in stat.read_text(encoding="utf-8").splitlines():
        name, *counts = line.split()
        if name in allowed:
            user, nice, system, _idle, _waiting, irq, softirq, stolen, *_ = map(int, counts)
            ticks += user + nice + system + irq + softirq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _os_name(os_release: Path) -> str:
    kernel = f"{platform.system()} {platform.release()}"
    if os_release.exists():
        for line in os_release.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("PRETTY_NAME="):
                return f"{line.partition('=')[2].strip().strip(chr(34))}, {kernel}"
    return kernel


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
