"""Runs kernels over guarded memory: `python -m tests.kernels.bounds products|attention`.

A kernel that reads or writes beyond an array ends this process by a signal. Sizes are no multiples of what the kernels
work in; what is computed is compared, too.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from kea.attention import create_backend
from kea.attention.base import LayerCache
from kea.attention.numba_program import Spare, Work
from kea.kernels import matrix as matrices
from kea.kernels.matrix import pack_matrix, padded, record_product, tiles_bytes
from kea.kernels.panels import BYTE, FULL, HALF
from kea.kernels.program import TEAM, Operation, Program
from kea.kernels.tiles import has_tiles
from kea.models.lean import steps
from tests.attention.plans import Case, dense_oracle, random_case, rounded
from tests.kernels.guarded import GuardedArena, guarded, guarded_tensor, guarded_zeros

NUM_ROWS = (*range(1, 19), 24, 25, 31, 32, 33, 48, 49, 64, 70, 129)
SHAPES = ((1, 1), (3, 5), (17, 16), (33, 31), (70, 33), (31, 100), (200, 65))


def each_path() -> Iterator[bool]:
    """Once as on machines with tiles, where this is one, and once as on all others."""
    for found in sorted({has_tiles(), False}):
        setattr(matrices, has_tiles.__name__, partial(bool, found))
        yield found
    setattr(matrices, has_tiles.__name__, has_tiles)


def check_product(kind: int, shape: tuple[int, int], num_rows: int, *, at_end: bool, num_threads: int) -> None:
    rng = np.random.default_rng(num_rows)
    zeros = partial(guarded_zeros, at_end=at_end)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == HALF:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    arena: Any = GuardedArena(at_end=at_end)
    matrix = pack_matrix(values, quantize=kind == BYTE, arena=arena)
    matrix = replace(matrix, scales=guarded(matrix.scales, at_end=at_end))
    bias = zeros((padded(shape[0]),), np.float32)
    bias[: shape[0]] = rng.standard_normal(shape[0])
    x = zeros((num_rows, padded(shape[1])), np.float32)
    x[:, : shape[1]] = rng.standard_normal((num_rows, shape[1]))
    taken, operations = x, []
    if matrix.takes_tiles(num_rows):
        taken = zeros((tiles_bytes(num_rows, shape[1], matrix.kind),), np.uint8)
        cut = np.array([x.ctypes.data, x.shape[1], num_rows, taken.ctypes.data, matrix.kind, 0], np.int64)
        operations.append(Operation(steps.CUT, cut, -(-num_rows // steps.CHUNK_ROWS)))
    out = zeros((num_rows, matrix.padded_columns), np.float32)
    operation, holds = record_product(matrix, bias, taken, out, num_threads)
    TEAM.run(Program([*operations, operation], holds), num_threads)
    expected = x[:, : shape[1]].astype(np.float64) @ matrix.rows(np.arange(shape[0])).astype(np.float64).T
    error = np.abs(out[:, : shape[0]] - expected - bias[: shape[0]]).max()
    assert error < 2e-5 * max(1.0, np.sqrt(shape[1])), (kind, shape, num_rows, error)


def products() -> None:
    for _, kind, shape, at_end in product(each_path(), (FULL, HALF, BYTE), SHAPES, (True, False)):
        for num_rows in NUM_ROWS:
            check_product(kind, shape, num_rows, at_end=at_end, num_threads=1 + num_rows % 3)


def guard_work(at_end: bool) -> None:
    """Have what a step's arguments point to guarded, and partial results."""
    whole = Work.__init__

    def create(self: Work, plan: Any, segments: Any, units: Any) -> None:
        for part in (segments, units):
            for field in fields(part):
                value = getattr(part, field.name)
                if isinstance(value, np.ndarray):
                    object.__setattr__(part, field.name, guarded(value, at_end=at_end))
        whole(self, plan, segments, units)

    def address(self: Any, size: int) -> int:
        self._values = guarded_zeros((size,), np.float32, at_end=at_end)
        return int(self._values.ctypes.data)

    Work.__init__ = create  # type: ignore[method-assign]
    Spare.address = address  # type: ignore[method-assign]


def check_attention(case: Case, *, at_end: bool) -> None:
    guard = partial(guarded_tensor, at_end=at_end)
    cache = LayerCache(guard(case.cache.keys), guard(case.cache.values))
    query, key, value = (guard(part) for part in (case.query, case.key, case.value))
    sinks = None if case.sinks is None else guard(case.sinks)
    found = create_backend("numba").prepare(case.plan).attend(case.spec, query, key, value, cache, sinks=sinks)
    error = (found.double() - dense_oracle(case)).abs().max()
    assert error < 1e-5, (case.spec, case.cache.keys.dtype, error)


def attention() -> None:
    dims = ((8, 8), (24, 16), (32, 32), (64, 64), (64, 32), (96, 128), (33, 7), (80, 80))
    for seed, at_end in product(range(24), (True, False)):
        guard_work(at_end)
        rng = random.Random(seed)
        like = random_case(seed)
        key_dim, value_dim = rng.choice(dims)
        num_kv = rng.choice((1, 2, 3))
        heads = num_kv * rng.choice((1, 2, 3, 5, 8))
        spec = replace(like.spec, num_heads=heads, num_kv_heads=num_kv, key_dim=key_dim, value_dim=value_dim)
        case = random_case(seed + 1, num_sequences=rng.randint(1, 12), like=replace(like, spec=spec))
        dtype = rng.choice((torch.float32, torch.float16, torch.int8))
        check_attention(case if dtype == torch.float32 else rounded(case, dtype), at_end=at_end)


def main(arguments: list[str]) -> int:
    faulthandler.enable()
    torch.set_num_threads(2)
    (what,) = arguments
    {"products": products, "attention": attention}[what]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
