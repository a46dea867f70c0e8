"""What the control groups of this process leave to it: the limits of a container, which the machine's figures do not
show. Linux; knows no devices and no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def try_memory_room(groups: Path = GROUPS, own: Path = OWN) -> int | None:
    """Return the bytes that may still be allocated, files that can be dropped counted as free; None without limit."""
    rooms = [
        _try_room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if is_old
        else _try_room(folder, "memory.max", "memory.current", "inactive_file")
        for folder, is_old in _own_groups(groups, own, "memory")
    ]
    return min((room for room in rooms if room is not None), default=None)


def try_cores(groups: Path = GROUPS, own: Path = OWN) -> int | None:
    """Return how many whole cores may be kept busy, at least 1; None without limit."""
    quotas = [_try_quota(folder, is_old=is_old) for folder, is_old in _own_groups(groups, own, "cpu")]
    least = min((quota for quota in quotas if quota is not None), default=None)
    return None if least is None else max(1, int(least))


def _own_groups(groups: Path, own: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the groups that hold this process, outermost first, and whether they are of version 1.

    A container may see its own group as the root; what it does not see has no files.
    """
    lines = own.read_text().splitlines() if own.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        folder = groups / controller if controllers else groups
        yield folder, bool(controllers)
        for name in filter(None, path.split("/")):
            folder = folder / name
            yield folder, bool(controllers)


def _try_room(folder: Path, limit_file: str, usage_file: str, droppable: str) -> int | None:
    limit, usage, stat = (_try_read(folder / name) for name in (limit_file, usage_file, "memory.stat"))
    if limit is None or usage is None or limit == "max":
        return None
    counts = dict(line.split() for line in (stat or "").splitlines())
    return max(0, int(limit) - int(usage) + int(counts.get(droppable, 0)))


def _try_quota(folder: Path, *, is_old: bool) -> float | None:
    """Return the seconds of all cores together that may be used per second."""
    if is_old:
        quota, period = _try_read(folder / "cpu.cfs_quota_us"), _try_read(folder / "cpu.cfs_period_us")
    else:
        quota, _, period = (_try_read(folder / "cpu.max") or "max").partition(" ")
    if quota in (None, "max", "-1") or not period:
        return None
    return int(quota) / int(period)


def _try_read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # no such group is seen from here
