"""Intel's tile unit (AMX) as numba functions: eight registers of 16 rows of 64 bytes, products of bfloat16 and int8.

Owns the permission that Linux gives a process for it. Knows no kernels.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.kernels.machine import I64, POINTER, cpu_features, emit_prefetch, pointer

I8 = ir.IntType(8)
TILE_ROWS = 16
TILE_BYTES = 1024
TILE_DEPTH = 32  # bfloat16 values of a row
CONFIG_BYTES = 64

_FEATURES = frozenset({"amx-tile", "amx-bf16", "amx-int8", "avx512f"})
"""What kernels with tiles are made of: those that cut numbers into tiles work in vectors of AVX-512."""

_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


@functools.cache
def has_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 and int8 and the system lets this process do so."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if not cpu_features() >= _FEATURES:
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def tile_config(rows: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the configuration [64] of the eight registers: the rows of each, of 64 bytes."""
    config = np.zeros(CONFIG_BYTES, np.uint8)
    config[0] = 1
    config[16:32:2] = 64
    config[48 : 48 + len(rows)] = rows
    return config


def _call(builder: Any, name: str, kinds: list[Any], args: list[Any]) -> None:
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(ir.VoidType(), kinds))
    builder.call(function, args)


def emit_load(builder: Any, tile: int, address: Any) -> None:
    """Emit what loads a register from rows of 64 bytes, one behind the other."""
    _call(builder, "llvm.x86.tileloadd64", [I8, POINTER, I64], [I8(tile), pointer(builder, address), I64(64)])


def emit_dot(builder: Any, total: int, rows: int, columns: int) -> None:
    """Emit total += rows columns: see `dot`."""
    _call(builder, "llvm.x86.tdpbf16ps", [I8] * 3, [I8(number) for number in (total, rows, columns)])


@intrinsic  # type: ignore[untyped-decorator]
def configure(_typing: Any, address: Any) -> Any:
    """Configure the registers of this thread from the 64 bytes at an address; they become zero."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _call(builder, "llvm.x86.ldtilecfg", [POINTER], [pointer(builder, args[0])])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def release(_typing: Any) -> Any:
    """Give the registers back: a thread that keeps them is slower to switch."""

    def emit(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), emit


def _literals(*numbers: Any) -> list[int] | None:
    """The registers' numbers, which must be known when the kernel is compiled; None asks numba for literals."""
    if not all(isinstance(number, types.IntegerLiteral) for number in numbers):
        return None
    return [number.literal_value for number in numbers]


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def zero(_typing: Any, tile: Any) -> Any:
    numbers = _literals(tile)
    if numbers is None:
        return None

    def emit(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        _call(builder, "llvm.x86.tilezero", [I8], [I8(numbers[0])])
        return context.get_dummy_value()

    return types.void(tile), emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def load(_typing: Any, tile: Any, address: Any, stride: Any) -> Any:
    """Load a register from rows of 64 bytes that lie `stride` bytes apart."""
    numbers = _literals(tile)
    if numbers is None:
        return None

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        values = [I8(numbers[0]), pointer(builder, args[1]), args[2]]
        _call(builder, "llvm.x86.tileloadd64", [I8, POINTER, I64], values)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def store(_typing: Any, tile: Any, address: Any, stride: Any) -> Any:
    """Store a register to rows of 64 bytes that lie `stride` bytes apart."""
    numbers = _literals(tile)
    if numbers is None:
        return None

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        values = [I8(numbers[0]), pointer(builder, args[1]), args[2]]
        _call(builder, "llvm.x86.tilestored64", [I8, POINTER, I64], values)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), emit


def _dot(name: str, *operands: Any) -> Any:
    numbers = _literals(*operands)
    if numbers is None:
        return None

    def emit(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        _call(builder, name, [I8] * 3, [I8(number) for number in numbers])
        return context.get_dummy_value()

    return types.void(*operands), emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dot(_typing: Any, total: Any, rows: Any, columns: Any) -> Any:
    """total += rows columns: bfloat16 pairs, exact products, sums in fp32; subnormal numbers count as zero."""
    return _dot("llvm.x86.tdpbf16ps", total, rows, columns)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dot_bytes(_typing: Any, total: Any, rows: Any, columns: Any) -> Any:
    """total += rows columns: int8 by fours, products and sums in int32."""
    return _dot("llvm.x86.tdpbssd", total, rows, columns)


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, address: Any) -> Any:
    """Ask for the 1,024 bytes of a tile to be brought to the core's second cache. Any address will do."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        for line in range(0, TILE_BYTES, 64):
            emit_prefetch(builder, builder.add(args[0], I64(line)))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def prefetch_lines(_typing: Any, address: Any, num_lines: Any) -> Any:
    """The same for some lines of 64 bytes; their number is a literal."""
    numbers = _literals(num_lines)
    if numbers is None:
        return None

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        for line in range(numbers[0]):
            emit_prefetch(builder, builder.add(args[0], I64(64 * line)))
        return context.get_dummy_value()

    return types.void(types.int64, num_lines), emit
