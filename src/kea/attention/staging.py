"""Moves a step's arrays to the device in one copy. Owns pinned buffers that outlive the copies. Knows no attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

NUM_BUFFERS = 4
ALIGNMENT = 4  # elements: every part begins at 16 bytes

Int32 = NDArray[np.int32]


class Staging:
    """A ring of pinned host buffers on the way to one device; a buffer is written again once its last copy is done.

    So the host may run ahead of the device by a few steps and never waits within a step. On a CPU there is nothing to
    pin and nothing to wait for: a copy in memory is all.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ring: list[tuple[torch.Tensor, Any]] = []
        self._next = 0

    def upload(self, parts: Sequence[Int32], out: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Copy the parts in one transfer, into the beginning of `out` (int32) or a new tensor; return views of them."""
        offsets = [num_elements(parts[:i]) for i in range(len(parts))]
        total = num_elements(parts)
        if out is None:
            out = torch.empty(total, dtype=torch.int32, device=self._device)
        assert out.numel() >= total, "the parts do not fit into their buffer"
        host, done = self._take(total)
        flat = host.numpy()
        for part, offset in zip(parts, offsets, strict=True):
            flat[offset : offset + part.size] = part.reshape(-1)
        out[:total].copy_(host[:total], non_blocking=True)
        if done is not None:
            done.record()
        return tuple(out[offset : offset + part.size] for part, offset in zip(parts, offsets, strict=True))

    def _take(self, size: int) -> tuple[torch.Tensor, Any]:
        """Return a host buffer of at least `size` elements that no copy reads any more, and the event of its next."""
        if self._device.type != "cuda":
            return torch.empty(size, dtype=torch.int32), None
        index, self._next = self._next, (self._next + 1) % NUM_BUFFERS
        if index < len(self._ring):
            host, done = self._ring[index]
            done.synchronize()
            if host.numel() >= size:
                return host, done
        host = torch.empty(max(1024, 2 * size), dtype=torch.int32, pin_memory=True)
        event: Any = torch.cuda.Event
        entry = (host, event())
        if index < len(self._ring):
            self._ring[index] = entry
        else:
            self._ring.append(entry)
        return entry


def num_elements(parts: Sequence[Int32]) -> int:
    """Return the elements that the parts take together, each aligned."""
    return sum(-(-part.size // ALIGNMENT) * ALIGNMENT for part in parts)
