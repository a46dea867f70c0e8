"""Rows in 16 and 8 bits: the kernels write the bits that the definition in torch does, and read them back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import njit

from kea.attention.storage import pack, row_width, scales, telling, unpack
from kea.kernels.narrow import narrow_bytes, narrow_half, widen_bytes, widen_half
from kea.kernels.program import FAST_SUMS

SIZES = (1, 7, 8, 16, 24, 31, 64, 80)
TYPES = (torch.float16, torch.int8)


@njit(fastmath=set(FAST_SUMS))  # type: ignore[untyped-decorator]
def write_half(source: int, size: int, out: int) -> None:
    narrow_half(source, size, out)


@njit(fastmath=set(FAST_SUMS))  # type: ignore[untyped-decorator]
def write_bytes(source: int, size: int, out: int) -> None:
    narrow_bytes(source, size, out)


@njit(fastmath=set(FAST_SUMS))  # type: ignore[untyped-decorator]
def read_half(source: int, size: int, out: int) -> None:
    widen_half(source, size, out)


@njit(fastmath=set(FAST_SUMS))  # type: ignore[untyped-decorator]
def read_bytes(source: int, size: int, out: int) -> None:
    widen_bytes(source, size, out)


KERNELS = {torch.float16: (write_half, read_half), torch.int8: (write_bytes, read_bytes)}


def through(kernel: Callable[[int, int, int], None], source: torch.Tensor, out: torch.Tensor, size: int) -> None:
    """Run a kernel from one row to another, the memory around which stays as it is."""
    room = torch.full((out.nbytes + 128,), 85, dtype=torch.uint8)
    kernel(source.data_ptr(), size, room.data_ptr() + 64)
    out.copy_(room[64:-64].view(out.dtype) if not room[64:-64].data_ptr() % 4 else room[64:-64].clone().view(out.dtype))
    assert (room[:64] == 85).all()
    assert (room[-64:] == 85).all()


def narrowed(row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(row_width(dtype, len(row)), dtype=dtype)
    through(KERNELS[dtype][0], row, out, len(row))
    return out


def widened(row: torch.Tensor, size: int) -> torch.Tensor:
    out = torch.empty(size)
    through(KERNELS[row.dtype][1], row, out, size)
    return out


def random_row(size: int, seed: int) -> torch.Tensor:
    """Return a row of magnitudes from below to above what is normal in 16 bits, ties of the rounding among them."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(size, generator=generator) * 10.0 ** torch.randint(-9, 4, (1,), generator=generator)
    row[::3] = row[::3].half().float() * (1 + 2.0**-11)
    return row


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_write_and_read_what_the_definition_does(dtype: torch.dtype, size: int) -> None:
    for seed in range(200):
        row = random_row(size, seed)
        expected = pack(row, dtype)
        assert torch.equal(narrowed(row, dtype), expected)
        assert torch.equal(widened(expected, size), unpack(expected).float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 5, 23])
def test_a_row_with_what_is_not_finite_tells_so(dtype: torch.dtype, value: float, place: int) -> None:
    row = torch.randn(24)
    row[place] = value
    for rows in (narrowed(row, dtype), pack(row, dtype)):
        assert not telling(rows).isfinite().all()
        assert unpack(rows)[0].isnan()
        assert widened(rows, 24)[0].isnan()


def test_what_is_too_large_for_half_precision_makes_its_row_unsound() -> None:
    row = torch.tensor([1.0, 70000.0, -2.0])
    for rows in (narrowed(row, torch.float16), pack(row, torch.float16)):
        assert rows[0].isnan()
    assert torch.equal(unpack(narrowed(row, torch.int8)), unpack(pack(row, torch.int8)))
    assert (unpack(pack(row, torch.int8)) - row).abs().max() <= 70000 / 254 * (1 + 1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-35, -1e-31])
def test_a_row_of_next_to_nothing_becomes_zeros(value: float) -> None:
    row = torch.full((20,), value)
    for rows in (narrowed(row, torch.int8), pack(row, torch.int8)):
        assert torch.equal(rows, torch.zeros(24, dtype=torch.int8))


def test_int8_errs_by_half_a_step_at_most_and_keeps_the_largest() -> None:
    rows = torch.randn(50, 3, 64)
    kept = unpack(pack(rows, torch.int8))
    steps = rows.abs().amax(-1, keepdim=True) / 127
    assert ((kept - rows).abs() <= steps / 2 * (1 + 1e-5)).all()
    assert torch.allclose(scales(pack(rows, torch.int8)), steps)
    assert np.isclose(kept.abs().amax(), rows.abs().amax())
