"""What the engine asks of the machine it runs on: free memory and threads. Knows no models."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kea.engine.containers import try_cores, try_memory_room
from kea.errors import InvalidRequest, check_range

_MEMINFO = Path("/proc/meminfo")


def resolve_device(device: str) -> str:
    """Return the device to run on: "auto" is the first GPU if there is one. Raises `InvalidRequest` if it is not
    here.
    """
    has_gpu = torch.cuda.is_available()
    if device == "auto":
        return "cuda:0" if has_gpu else "cpu"
    if device.startswith("cuda") and not has_gpu:
        raise InvalidRequest(f"device is {device!r}, but this machine has no GPU that torch can use.", param="device")
    if device != "cpu" and not device.startswith("cuda"):
        raise InvalidRequest(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N.", param="device")
    return "cuda:0" if device == "cuda" else device


def use_device(device: str) -> None:
    """Have what this thread launches go to `device`: kernels of our own take the thread's GPU, not their tensors'."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def free_memory_bytes(device: str) -> int:
    """Return the bytes that can be allocated on a device ("cpu", "cuda:0") without displacing anything, within the
    limit of a container.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if _MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        room = try_memory_room()
        return available if room is None else min(available, room)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def num_cores() -> int:
    """Return the cores that this process may use, within the limit of a container: more threads than that would be
    stopped in the middle of a step.
    """
    num_there = _num_there()
    return min(num_there, try_cores() or num_there)


def _num_there() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_num_threads(num_threads: int | None) -> None:
    """Raise `InvalidRequest` for more threads than there are cores: the kernels' threads spin for each other."""
    if num_threads is not None:
        check_range("num_threads", num_threads, 1, _num_there())


def set_num_threads(num_threads: int | None) -> None:
    """Give torch's operators this many threads (None: one per core). Raises as `check_num_threads` does."""
    check_num_threads(num_threads)
    torch.set_num_threads(num_threads or num_cores())
