"""LLVM's primitives as numba functions: memory by address, bits of floats, atomics, calls by address.

A kernel gets plain addresses; what is wrong with one ends the process, so only the code that allocated a buffer makes
its addresses. Knows no kernels.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

POINTER = ir.PointerType()
I64 = ir.IntType(64)
F32 = ir.FloatType()
PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())
CACHE_LINE_BYTES = 64


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return what the processor has, by LLVM's names, that numba compiles for: less where the user says so by
    NUMBA_CPU_NAME=generic, NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX=0. Code for more of it would end the process.
    """
    text = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(part[1:] for part in text.split(",") if part.startswith("+"))


def pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, POINTER)


@intrinsic  # type: ignore[untyped-decorator]
def f32_at(_typing: Any, address: Any) -> Any:
    """Return the pointer to fp32 values at an address, for `carray`."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.float32)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def u16_at(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.uint16)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def i8_at(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.int8)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def u64_at(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.uint64)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def f64_at(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.float64)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def i64_at(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return pointer(builder, args[0])

    return types.CPointer(types.int64)(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def number_at(_typing: Any, address: Any) -> Any:
    """Read the fp64 at an address, as fp32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fptrunc(builder.load(pointer(builder, args[0]), typ=ir.DoubleType()), F32)

    return types.float32(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def bits_of_float(_typing: Any, value: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(_typing: Any, bits: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), emit


@intrinsic  # type: ignore[untyped-decorator]
def fetch_add(_typing: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, atomically; return what was there."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def try_swap(_typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Put a value in place of an expected one at an address, atomically; return whether that was there."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(pointer(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def load_acquire(_typing: Any, address: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0]), "acquire", 8, typ=I64)

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def pause(_typing: Any) -> Any:
    """Tell the core that this thread spins."""

    def emit(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if PAUSE is not None:
            builder.call(builder.module.declare_intrinsic(PAUSE, (), ir.FunctionType(ir.VoidType(), [])), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic  # type: ignore[untyped-decorator]
def yield_core(_typing: Any) -> Any:
    """Let another thread have the core (POSIX sched_yield)."""

    def emit(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        name = "sched_yield"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [])

    return types.int32(), emit


@intrinsic  # type: ignore[untyped-decorator]
def call_kernel(_typing: Any, function: Any, arguments: Any, chunk: Any) -> Any:
    """Call the kernel at an address with the address of its arguments and the chunk to compute."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        target = builder.inttoptr(args[0], ir.PointerType(kind))
        builder.call(target, [args[1], args[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def emit_prefetch(builder: Any, address: Any) -> None:
    """Emit what asks for 64 bytes to be brought to the core's second cache. Any address will do."""
    i32 = ir.IntType(32)
    name, kind = "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [POINTER, i32, i32, i32])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [pointer(builder, address), i32(0), i32(2), i32(1)])


@intrinsic  # type: ignore[untyped-decorator]
def prefetch_line(_typing: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        emit_prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit
