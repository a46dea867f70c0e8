"""The kernels of the lean decoder on a GPU between its matrix products: embeddings and phases, norms, heads, gates.

They compute in fp32 and round where a row is stored. Know no models; parameters are many and untyped, as Triton has it.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_NORM = 0
HEAD_NORM = 1
ROW_NORM = 2
_HEAD = tl.constexpr(HEAD_NORM)
_ROW = tl.constexpr(ROW_NORM)
_TURN = tl.constexpr(6.283185307179586)


@triton.jit(do_not_specialize_on_alignment=["tokens", "positions"])  # parts of one tensor: any may begin at 8 bytes
def begin_rows(  # noqa: PLR0917
    tokens, positions, embedding, frequencies, factors, hidden, cosines, sines,
    width, embedding_row, num_frequencies, scale,
    BLOCK: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Make one hidden row of a token's embedding, and cos and sin of its position, for every frequency of the model.

    `frequencies` [F] fp64 are in turns per position: whole turns are dropped in fp64, what is left is rounded to fp32.
    """
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    token = tl.load(tokens + row).to(tl.int64)
    x = tl.load(embedding + token * embedding_row + dims, mask=dims < width, other=0.0).to(tl.float32) * scale
    tl.store(hidden + row * width + dims, x.to(hidden.dtype.element_ty), mask=dims < width)
    f = tl.arange(0, BLOCK_F)
    ok = f < num_frequencies
    turns = tl.load(positions + row).to(tl.float64) * tl.load(frequencies + f, mask=ok, other=0.0)
    phase = (turns - tl.floor(turns)).to(tl.float32) * _TURN
    factor = tl.load(factors + f, mask=ok, other=0.0)
    tl.store(cosines + row * num_frequencies + f, tl.cos(phase) * factor, mask=ok)
    tl.store(sines + row * num_frequencies + f, tl.sin(phase) * factor, mask=ok)


@triton.jit
def normalised(x, weight, bias, dims, ok, width, eps, CENTRED: tl.constexpr, HAS_BIAS: tl.constexpr):  # noqa: PLR0917
    """Return the RMSNorm of a row in fp32, or its LayerNorm where CENTRED."""
    if CENTRED:
        x = tl.where(ok, x - tl.sum(x, 0) / width, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * tl.load(weight + dims, mask=ok, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias + dims, mask=ok, other=0.0)
    return x


@triton.jit(do_not_specialize_on_alignment=["index"])
def enter_block(  # noqa: PLR0917
    hidden, result, rows, index, after, after_bias, before, before_bias,
    width, scale, eps,
    HAS_RESULT: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_AFTER: tl.constexpr, HAS_BEFORE: tl.constexpr,
    HAS_BIAS: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a block's result, behind its norm, to a hidden row; then make the row that the next block takes.

    With HAS_INDEX, of the rows that it names alone, and these are the last that anything reads: they are not stored.
    """
    row = tl.program_id(0).to(tl.int64)
    source = row
    if HAS_INDEX:
        source = tl.load(index + row).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    ok = dims < width
    where = hidden + source * width + dims
    x = tl.load(where, mask=ok, other=0.0).to(tl.float32)
    if HAS_RESULT:
        y = tl.load(result + source * width + dims, mask=ok, other=0.0).to(tl.float32)
        if HAS_AFTER:
            y = normalised(y, after, after_bias, dims, ok, width, eps, CENTRED, HAS_BIAS)
        rounded = (x + scale * y).to(hidden.dtype.element_ty)
        if not HAS_INDEX:
            tl.store(where, rounded, mask=ok)
        x = rounded.to(tl.float32)
    if HAS_BEFORE:
        x = normalised(x, before, before_bias, dims, ok, width, eps, CENTRED, HAS_BIAS)
        tl.store(rows + row * width + dims, x.to(rows.dtype.element_ty), mask=ok)


@triton.jit
def placed(  # noqa: PLR0917
    source, out, weight, cosine, sine, head, num_heads, eps,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    NORM: tl.constexpr, TURN_DIMS: tl.constexpr, TURN_PAIRS: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate one head of the row at `source` and store it at `out`."""
    half: tl.constexpr = TURN_DIMS // 2
    dims = tl.arange(0, BLOCK_D)
    ok = dims < DIM
    first = head * DIM
    x = tl.load(source + first + dims, mask=ok, other=0.0).to(tl.float32)
    if NORM == _HEAD:
        factor = tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
        x = x * factor * tl.load(weight + dims, mask=ok, other=0.0)
    elif NORM == _ROW:
        all_dims = tl.arange(0, BLOCK_W)
        whole = tl.load(source + all_dims, mask=all_dims < num_heads * DIM, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(whole * whole, 0) / (num_heads * DIM) + eps)
        x = x * factor * tl.load(weight + first + dims, mask=ok, other=0.0)
    if TURN_DIMS > 0:
        if TURN_PAIRS:
            is_first = dims % 2 == 0
            partner = tl.where(is_first, dims + 1, dims - 1)
            frequency = dims // 2
        else:
            is_first = dims < half
            partner = tl.where(is_first, dims + half, dims - half)
            frequency = tl.where(is_first, dims, dims - half)
        turns = dims < TURN_DIMS
        other = tl.load(source + first + partner, mask=turns, other=0.0).to(tl.float32)
        if NORM == _HEAD:
            other = other * factor * tl.load(weight + partner, mask=turns, other=0.0)
        elif NORM == _ROW:
            other = other * factor * tl.load(weight + first + partner, mask=turns, other=0.0)
        c = tl.load(cosine + frequency, mask=turns, other=1.0)
        s = tl.load(sine + frequency, mask=turns, other=0.0)
        x = x * c + tl.where(is_first, -other, other) * s
    tl.store(out + dims, x.to(out.dtype.element_ty), mask=ok)


@triton.jit
def place_heads(  # noqa: PLR0917
    qkv, query, keys, values, slots, query_weight, key_weight, cosines, sines,
    qkv_row, keys_slot, keys_head, values_slot, values_head, num_frequencies, num_heads, num_kv_heads, eps,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_W: tl.constexpr, QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr,
    TURN_DIMS: tl.constexpr, TURN_PAIRS: tl.constexpr,
):  # fmt: skip
    """Take one head of one row of `qkv`, normalised and rotated: a query into `query` [T, H, Dk], a key or a value into
    the row's slot of the cache; a row whose slot is -1 is padding.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    source = qkv + row * qkv_row
    cosine = cosines + row * num_frequencies
    sine = sines + row * num_frequencies
    if head < num_heads:
        out = query + (row * num_heads + head) * KEY_DIM
        placed(
            source, out, query_weight, cosine, sine, head, num_heads, eps,
            KEY_DIM, BLOCK_K, BLOCK_W, QUERY_NORM, TURN_DIMS, TURN_PAIRS,
        )  # fmt: skip
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            source += num_heads * KEY_DIM
            head -= num_heads
            if head < num_kv_heads:
                out = keys + slot * keys_slot + head * keys_head
                placed(
                    source, out, key_weight, cosine, sine, head, num_kv_heads, eps,
                    KEY_DIM, BLOCK_K, BLOCK_W, KEY_NORM, TURN_DIMS, TURN_PAIRS,
                )  # fmt: skip
            else:
                head -= num_kv_heads
                dims = tl.arange(0, BLOCK_V)
                ok = dims < VALUE_DIM
                x = tl.load(source + num_kv_heads * KEY_DIM + head * VALUE_DIM + dims, mask=ok)
                out = values + slot * values_slot + head * values_head
                tl.store(out + dims, x.to(values.dtype.element_ty), mask=ok)


@triton.jit
def gate_rows(both, gated, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    """Store act(gate) * up of some columns of a row of `both` [T, 2 * size]: the gate, then up."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = dims < size
    source = both + row * 2 * size
    g = tl.load(source + dims, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(source + size + dims, mask=ok, other=0.0).to(tl.float32)
    z = g
    if TANH:  # the tanh form of gelu is g times the logistic function of this
        z = 1.5957691216057308 * (g + 0.044715 * g * g * g)
    tl.store(gated + row * size + dims, (g / (1.0 + tl.exp(-z)) * up).to(gated.dtype.element_ty), mask=ok)
