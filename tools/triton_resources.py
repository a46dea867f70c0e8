"""Compiles our kernels for a Hopper GPU, which needs none, and prints what each takes of it.

`python -m tools.triton_resources [H:KV:DK:DV]...`: per head shape, arithmetic and kernel (attention over narrow and
wide blocks, writing the cache, merging parts; the lean decoder's of a hidden size of H * DK) one line with its tile,
shared memory in bytes, registers per thread, products on tensor cores (wgmma, mma) and bytes spilled per thread.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kea.attention.base import LayerSpec
from kea.attention.triton_kernels import attend_items, merge_parts, write_cache
from kea.attention.triton_launch import MERGE_BLOCK
from kea.attention.triton_tiles import Machine, Tile, block_dim, narrow_tile, wide_tile
from kea.models.lean.triton_kernels import HEAD_NORM, begin_rows, enter_block, gate_rows, place_heads

HOPPER = Machine(num_processors=132, is_large=True, is_interpreted=False)
TARGET = GPUTarget("cuda", 90, 32)
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
DEFAULT_SHAPES = ("32:8:128:128", "32:8:64:64", "16:16:192:128", "8:4:256:256")
TYPES = {
    "*fp32": "part_out part_lse turns factors cosines sines "
    "after after_bias before before_bias query_weight key_weight",
    "*fp64": "frequencies",
    "*i32": "items entries tables merges",
    "*i64": "slots tokens positions index",
    "fp32": "factor softcap scale eps",
    "i32": "width size",
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
PLAIN = Tile(1, 1, 4, 1)  # of a kernel without products
WIDE, ONE_WARP = Tile(1, 1, 8, 1), Tile(1, 1, 1, 1)


def main(arguments: list[str]) -> int:
    print("heads dtype kernel tile smem_bytes registers wgmma mma spilled_bytes")
    for shape in arguments or DEFAULT_SHAPES:
        heads, kv_heads, key_dim, value_dim = map(int, shape.split(":"))
        spec = LayerSpec(heads, kv_heads, key_dim, value_dim, key_dim**-0.5)
        for dtype, name in NAMES.items():
            for block, choose in (("narrow", narrow_tile), ("wide", wide_tile)):
                tile = choose(spec, dtype, HOPPER)
                print(shape, name, block, *describe(attend_items, attend_constants(spec, tile), name, tile))
            dims = {"VALUE_DIM": spec.value_dim, "BLOCK_V": block_dim(spec.value_dim)}
            keys = {"KEY_DIM": spec.key_dim, "BLOCK_K": block_dim(spec.key_dim), "BLOCK_H": 1}
            print(shape, name, "write", *describe(write_cache, dims | keys, name, PLAIN))
            merge = dims | {"BLOCK_P": MERGE_BLOCK, "HAS_SINKS": True}
            print(shape, name, "merge", *describe(merge_parts, merge, name, PLAIN))
            for step, kernel, constants, tile in lean_steps(spec):
                print(shape, name, step, *describe(kernel, constants, name, tile))
    return 0


def lean_steps(spec: LayerSpec) -> list[tuple[str, Any, dict[str, Any], Tile]]:
    """Return the lean decoder's kernels with all that they can be asked for."""
    hidden = block_dim(spec.num_heads * spec.key_dim)
    norms = dict.fromkeys(("HAS_RESULT", "HAS_AFTER", "HAS_BEFORE", "HAS_BIAS", "CENTRED"), True)
    heads = {"QUERY_NORM": HEAD_NORM, "KEY_NORM": HEAD_NORM, "BLOCK_W": 1, "TURN_DIMS": 2 * (spec.key_dim // 2)}
    dims = {"KEY_DIM": spec.key_dim, "VALUE_DIM": spec.value_dim}
    blocks = {"BLOCK_K": block_dim(spec.key_dim), "BLOCK_V": block_dim(spec.value_dim)}
    return [
        ("begin", begin_rows, {"BLOCK": hidden, "BLOCK_F": block_dim(spec.key_dim) // 2}, WIDE),
        ("enter", enter_block, {**norms, "HAS_INDEX": False, "BLOCK": hidden}, WIDE),
        ("last", enter_block, {**norms, "HAS_INDEX": True, "BLOCK": hidden}, WIDE),
        ("heads", place_heads, {**heads, **dims, **blocks, "TURN_PAIRS": False}, ONE_WARP),
        ("gate", gate_rows, {"TANH": False, "BLOCK": 1024}, PLAIN),
    ]


def describe(kernel: Any, constants: dict[str, Any], dtype: str, tile: Tile) -> tuple[str, int, int, int, int, int]:
    """Return the tile, and what the kernel takes with it."""
    compiled = triton.compile(
        _source(kernel, constants, dtype),
        target=TARGET,
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )
    registers, spilled = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    shape = f"{tile.block_m}x{tile.block_n}/w{tile.num_warps}/s{tile.num_stages}"
    return shape, compiled.metadata.shared, registers, ptx.count("wgmma.mma_async"), ptx.count("mma.sync"), spilled


def attend_constants(spec: LayerSpec, tile: Tile) -> dict[str, Any]:
    return {
        "GROUP": spec.num_heads // spec.num_kv_heads, "KEY_DIM": spec.key_dim, "VALUE_DIM": spec.value_dim, "PAGE": 16,
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "BLOCK_K": block_dim(spec.key_dim), "BLOCK_V": block_dim(spec.value_dim),
        "HAS_SOFTCAP": False, "HAS_SINKS": False, "PRECISION": "ieee",
        "TURN_DIMS": 0, "TURN_FIRST": 0, "TURN_PAIRS": False,
    }  # fmt: skip


def _source(kernel: Any, constants: dict[str, Any], dtype: str) -> ASTSource:
    names = kernel.arg_names
    signature = {name: _type_of(name, dtype) if name not in constants else "constexpr" for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith(("*", "i"))}
    return ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)


def _type_of(name: str, dtype: str) -> str:
    return TYPE_OF.get(name, f"*{dtype}" if "_" not in name else "i32")


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers and the bytes of stack of a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
