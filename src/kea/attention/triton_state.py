"""What the backend `triton` keeps for one device: its facts, its buffers, the kinds of layers seen. Knows no steps."""

from __future__ import annotations

import torch

from kea.attention.base import LayerSpec
from kea.attention.sharing import SharingPlanner
from kea.attention.staging import ALIGNMENT, Staging
from kea.attention.triton_launch import Parts
from kea.attention.triton_tiles import read_machine
from kea.attention.triton_work import WorkKey


class DeviceState:
    """What the backend keeps for one device, as long as it lives: its facts, its buffers, the kinds of layers seen."""

    def __init__(self, device: torch.device) -> None:
        self.machine = read_machine(device)
        self.staging = Staging(device)
        self.sharing = SharingPlanner()
        self.kinds: tuple[WorkKey, ...] = ()
        self._device = device
        self._flat = torch.empty(0, device=device)

    def note(self, kind: WorkKey) -> None:
        """Have the work of layers of this kind planned from the beginning of a step on."""
        if kind not in self.kinds:
            self.kinds = (*self.kinds, kind)

    def parts(self, num_parts: int, spec: LayerSpec) -> PartsMemory:
        """Return memory for so many partial results of the layer, which any other layer uses too."""
        size = aligned(num_parts * spec.num_heads * (spec.value_dim + 1)) + ALIGNMENT
        if self._flat.numel() < size:
            self._flat = torch.empty(size, device=self._device)
        return PartsMemory(self._flat)


class PartsMemory:
    """Memory of partial results; lives as long as somebody holds it, though the device's state takes a larger one."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat

    def of_layer(self, num_parts: int, spec: LayerSpec) -> Parts:
        """Return the room for a layer's parts: log-sum-exps, then outputs."""
        num_lse = num_parts * spec.num_heads
        first = aligned(num_lse)
        return Parts(self._flat[first : first + num_lse * spec.value_dim], self._flat[:num_lse])


def aligned(count: int) -> int:
    """Return the next multiple of 16 bytes, in floats: Triton compiles a kernel anew for pointers less aligned."""
    return -(-count // ALIGNMENT) * ALIGNMENT
