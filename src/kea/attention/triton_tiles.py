"""Block shapes of the backend `triton` by head size, arithmetic and device. Knows no plans, no requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kea.attention.base import LayerSpec
from kea.attention.triton_work import Budget, WorkKey
from kea.errors import Unsupported

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_DOT = 16  # the least side of a product that Triton takes
LARGE_SHARED_BYTES = 160 << 10


@dataclass(frozen=True, slots=True)
class Machine:
    """What the shapes depend on. `num_processors`: streaming multiprocessors. `is_large`: shared memory as of an A100
    or later. `is_interpreted`: the kernels run in Triton's interpreter, where only small blocks are worth their time.
    """

    num_processors: int
    is_large: bool
    is_interpreted: bool

    @property
    def budget(self) -> Budget:
        if self.is_interpreted:
            return Budget(num_programs=8, min_tokens=64)
        return Budget(num_programs=4 * self.num_processors, min_tokens=256)


@dataclass(frozen=True, slots=True)
class Tile:
    """One launch's shape: rows of queries and positions of a block, warps of a program, depth of its pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def read_machine(device: torch.device) -> Machine:
    """Return what the device is. On a CPU the kernels are interpreted."""
    if device.type != "cuda":
        return Machine(num_processors=4, is_large=False, is_interpreted=True)
    found: Any = torch.cuda.get_device_properties(device)
    return Machine(found.multi_processor_count, found.shared_memory_per_block_optin >= LARGE_SHARED_BYTES, False)


def block_dim(width: int) -> int:
    """Return the padded width of a head: a power of two that a product takes."""
    return max(MIN_DOT, 1 << (width - 1).bit_length())


def narrow_tile(spec: LayerSpec, dtype: torch.dtype, machine: Machine) -> Tile:
    """Return the shape for decode rows: as few rows as hold one query's group; the memory's speed is the bound."""
    rows = block_dim(spec.num_heads // spec.num_kv_heads)
    if machine.is_interpreted:
        return Tile(rows, 32, 1, 1)
    width = block_dim(spec.key_dim) + block_dim(spec.value_dim)
    if dtype == torch.float32:  # no tensor cores: operands live in registers, which bound the block
        return Tile(rows, 32 if width <= 128 else 16, 4 if width <= 256 else 8, 2)
    return Tile(rows, 64 if width <= 256 else 32, 4, 3 if machine.is_large else 2)


def wide_tile(spec: LayerSpec, dtype: torch.dtype, machine: Machine) -> Tile:
    """Return the shape for chunks of prompts and shared prefixes: many rows, the arithmetic is the bound."""
    width = block_dim(spec.key_dim) + block_dim(spec.value_dim)
    group_rows = block_dim(spec.num_heads // spec.num_kv_heads)
    if machine.is_interpreted:
        return Tile(max(32, group_rows), 32, 1, 1)
    if dtype == torch.float32:
        return Tile(max(32, group_rows), 32 if width <= 128 else 16, 8, 2)
    if width > 256 or not machine.is_large:
        return Tile(max(64, group_rows), 32, 8 if width > 384 else 4, 2)
    return Tile(max(128, group_rows), 64, 8, 3)


def work_key(spec: LayerSpec, dtype: torch.dtype, machine: Machine) -> WorkKey:
    """Return what the planning of a layer depends on. Raises `Unsupported` for a dtype without kernels."""
    if dtype not in DTYPES:
        raise Unsupported(f"The backend 'triton' computes in {', '.join(map(str, DTYPES))}; the model is in {dtype}.")
    group = spec.num_heads // spec.num_kv_heads
    narrow, wide = narrow_tile(spec, dtype, machine), wide_tile(spec, dtype, machine)
    return WorkKey(spec.window, spec.num_kv_heads, narrow.block_m // group, wide.block_m // group)
