"""The kernels of the backend `triton`: writing keys and values, attending over items of work, merging partial results.

An item is a block of queries and one stretch of one run; `triton_work` makes them on the host. Logits are kept in base
two. Attention of one item is FlashAttention-2's online softmax (arXiv 2307.08691, section 3.1) over gathered slots;
the query heads of a KV head are further rows of the block. Partial results are merged by log-sum-exp.
Knows no plans, no requests. Kernels are Triton's dialect: their parameters are many and untyped.
"""

from __future__ import annotations

import triton
import triton.language as tl

ITEM_FIELDS = tl.constexpr(5)  # first entry, number of entries, place of position 0 in the page tables, lo, hi
ENTRY_FIELDS = tl.constexpr(5)  # row, part (-1: the row's only item), turn (-1: none), the positions [low, high) seen
MERGE_FIELDS = tl.constexpr(3)  # row (-1: nothing to do), first part, one past the last
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def write_cache(  # noqa: PLR0917
    key, value, keys, values, slots,
    key_row, key_head, value_row, value_head,
    keys_slot, keys_head, values_slot, values_head,
    num_heads,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write one row's keys and values of BLOCK_H heads to its slot; a row whose slot is -1 is padding."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    is_head = (heads < num_heads)[:, None]
    dims = tl.arange(0, BLOCK_K)[None, :]
    ok = is_head & (dims < KEY_DIM)
    new = tl.load(key + row * key_row + heads[:, None] * key_head + dims, mask=ok)
    tl.store(keys + slot * keys_slot + heads[:, None] * keys_head + dims, new.to(keys.dtype.element_ty), mask=ok)
    dims = tl.arange(0, BLOCK_V)[None, :]
    ok = is_head & (dims < VALUE_DIM)
    new = tl.load(value + row * value_row + heads[:, None] * value_head + dims, mask=ok)
    tl.store(
        values + slot * values_slot + heads[:, None] * values_head + dims, new.to(values.dtype.element_ty), mask=ok
    )


@triton.jit
def turned(  # noqa: PLR0917
    plain, pointers, turn, turns, dims, is_row,
    TURN_DIMS: tl.constexpr, TURN_FIRST: tl.constexpr, TURN_PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotate the loaded queries `plain` [M, K] by their rows of `turns` [N, 2, TURN_DIMS / 2]: cosines, then sines.

    The dimensions [TURN_FIRST, TURN_FIRST + TURN_DIMS) rotate, each with its partner: half of them away, or its
    neighbour (TURN_PAIRS).
    """
    half: tl.constexpr = TURN_DIMS // 2
    d = dims - TURN_FIRST
    turns_here = is_row[:, None] & (turn >= 0)[:, None] & ((d >= 0) & (d < TURN_DIMS))[None, :]
    if TURN_PAIRS:
        is_first = d % 2 == 0
        step = tl.where(is_first, 1, -1)
        frequency = d // 2
    else:
        is_first = d < half
        step = tl.where(is_first, half, -half)
        frequency = tl.where(is_first, d, d - half)
    partner = tl.load(pointers + step[None, :], mask=turns_here, other=0.0).to(tl.float32)
    where = turns + turn[:, None].to(tl.int64) * TURN_DIMS + frequency[None, :]
    cosine = tl.load(where, mask=turns_here, other=1.0)
    sine = tl.load(where + half, mask=turns_here, other=0.0)
    sine = tl.where(is_first[None, :], -sine, sine)
    return (plain.to(tl.float32) * cosine + partner * sine).to(plain.dtype)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Return a b in fp32; "widened" is for the interpreter, whose own product takes bfloat16's bits for integers."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def attend_tile(  # noqa: PLR0917
    acc, top, total, q, low, high, start, hi, table,
    keys, values, tables, keys_slot, values_slot, k_dims, v_dims,
    factor, softcap,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, IS_MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_N positions from `start` into the running softmax; IS_MASKED: not all queries see all of them."""
    j = start + tl.arange(0, BLOCK_N)
    inside = j < hi
    if IS_MASKED:
        page = tl.load(tables + table + j // PAGE, mask=inside, other=0)
    else:
        page = tl.load(tables + table + j // PAGE)
    slot = page.to(tl.int64) * PAGE + j % PAGE
    k_ok = (k_dims < KEY_DIM)[:, None] & inside[None, :] if IS_MASKED else (k_dims < KEY_DIM)[:, None]
    k = tl.load(keys + slot[None, :] * keys_slot + k_dims[:, None], mask=k_ok, other=0.0)
    logits = product(q, k.to(q.dtype), PRECISION) * factor
    if HAS_SOFTCAP:  # factor and softcap are scaled so that this is cap * tanh(logit / cap), in base two
        logits = softcap - 2.0 * softcap / (tl.exp(logits) + 1.0)
    if IS_MASKED:
        seen = inside[None, :] & (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
        logits = tl.where(seen, logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    v_ok = inside[:, None] & (v_dims < VALUE_DIM)[None, :] if IS_MASKED else (v_dims < VALUE_DIM)[None, :]
    v = tl.load(values + slot[:, None] * values_slot + v_dims[None, :], mask=v_ok, other=0.0).to(q.dtype)
    acc = acc * shrink[:, None] + product(weights.to(q.dtype), v, PRECISION)
    return acc, new_top, total


@triton.jit
def attend_items(  # noqa: PLR0915, PLR0917
    query, keys, values, out, part_out, part_lse, sinks, turns,
    items, entries, tables,
    query_row, query_head, keys_slot, keys_head, values_slot, values_head, out_row, out_head,
    num_heads, factor, softcap,
    GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
    TURN_DIMS: tl.constexpr, TURN_FIRST: tl.constexpr, TURN_PAIRS: tl.constexpr,
):  # fmt: skip
    """Attend for one item and one KV head; a row's only item writes its output, others a part and its log-sum-exp."""
    item = items + tl.program_id(0) * ITEM_FIELDS
    head = tl.program_id(1)
    num_entries = tl.load(item + 1)
    if num_entries == 0:
        return
    first = tl.load(item)
    table = tl.load(item + 2)
    lo = tl.load(item + 3)
    hi = tl.load(item + 4)

    m = tl.arange(0, BLOCK_M)
    is_row = m // GROUP < num_entries
    entry = entries + (first + m // GROUP) * ENTRY_FIELDS
    row = tl.load(entry, mask=is_row, other=0).to(tl.int64)
    part = tl.load(entry + 1, mask=is_row, other=-1)
    low = tl.load(entry + 3, mask=is_row, other=0)
    high = tl.load(entry + 4, mask=is_row, other=0)
    heads = head * GROUP + m % GROUP
    k_dims = tl.arange(0, BLOCK_K)
    v_dims = tl.arange(0, BLOCK_V)
    pointers = query + row[:, None] * query_row + heads[:, None] * query_head + k_dims[None, :]
    q = tl.load(pointers, mask=is_row[:, None] & (k_dims < KEY_DIM)[None, :], other=0.0)
    if TURN_DIMS > 0:
        turn = tl.load(entry + 2, mask=is_row, other=-1)
        q = turned(q, pointers, turn, turns, k_dims, is_row, TURN_DIMS, TURN_FIRST, TURN_PAIRS)

    keys += head.to(tl.int64) * keys_head
    values += head.to(tl.int64) * values_head
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    # [lo, seen_lo) masked on the left, [seen_lo, seen_hi) seen by every query, [seen_hi, hi) masked on the right
    last_low = tl.max(low, 0)
    first_high = tl.min(tl.where(is_row, high, hi), 0)
    seen_lo = tl.minimum(lo + tl.cdiv(tl.maximum(last_low - lo, 0), BLOCK_N) * BLOCK_N, hi)
    seen_hi = tl.maximum(tl.minimum(hi, first_high), seen_lo)
    seen_hi = seen_lo + (seen_hi - seen_lo) // BLOCK_N * BLOCK_N
    for start in tl.range(lo, seen_lo, BLOCK_N):
        acc, top, total = attend_tile(
            acc, top, total, q, low, high, start, hi, table,
            keys, values, tables, keys_slot, values_slot, k_dims, v_dims, factor, softcap,
            KEY_DIM, VALUE_DIM, PAGE, BLOCK_N, HAS_SOFTCAP, True, PRECISION,
        )  # fmt: skip
    for start in tl.range(seen_lo, seen_hi, BLOCK_N):
        acc, top, total = attend_tile(
            acc, top, total, q, low, high, start, hi, table,
            keys, values, tables, keys_slot, values_slot, k_dims, v_dims, factor, softcap,
            KEY_DIM, VALUE_DIM, PAGE, BLOCK_N, HAS_SOFTCAP, False, PRECISION,
        )  # fmt: skip
    for start in tl.range(seen_hi, hi, BLOCK_N):
        acc, top, total = attend_tile(
            acc, top, total, q, low, high, start, hi, table,
            keys, values, tables, keys_slot, values_slot, k_dims, v_dims, factor, softcap,
            KEY_DIM, VALUE_DIM, PAGE, BLOCK_N, HAS_SOFTCAP, True, PRECISION,
        )  # fmt: skip

    is_blind = total == 0.0
    is_only = part < 0
    denominator = total
    if HAS_SINKS:  # parts get theirs when they are merged
        sink = tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        denominator += tl.where(is_only, tl.exp2(sink - tl.where(is_blind, 0.0, top)), 0.0)
    result = tl.where(is_blind[:, None], 0.0, acc / tl.where(is_blind, 1.0, denominator)[:, None])
    is_value = (v_dims < VALUE_DIM)[None, :]
    where = out + row[:, None] * out_row + heads[:, None] * out_head + v_dims[None, :]
    tl.store(where, result.to(out.dtype.element_ty), mask=(is_row & is_only)[:, None] & is_value)
    spot = part.to(tl.int64) * num_heads + heads
    is_part = is_row & (part >= 0)
    tl.store(part_out + spot[:, None] * VALUE_DIM + v_dims[None, :], result, mask=is_part[:, None] & is_value)
    lse = tl.where(is_blind, float("-inf"), top + tl.log2(tl.where(is_blind, 1.0, total)))
    tl.store(part_lse + spot, lse, mask=is_part)


@triton.jit
def merge_parts(  # noqa: PLR0917
    part_out, part_lse, sinks, out, merges,
    out_row, out_head, num_heads,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_P: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row and query head into its output; no parts, or blind ones only, give zeros."""
    merge = merges + tl.program_id(0) * MERGE_FIELDS
    head = tl.program_id(1)
    row = tl.load(merge).to(tl.int64)
    if row < 0:
        return
    first = tl.load(merge + 1)
    stop = tl.load(merge + 2)
    dims = tl.arange(0, BLOCK_V)
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_V], tl.float32)
    for start in tl.range(first, stop, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        ok = part < stop
        spot = part.to(tl.int64) * num_heads + head
        lse = tl.load(part_lse + spot, mask=ok, other=float("-inf"))
        where = part_out + spot[:, None] * VALUE_DIM + dims[None, :]
        share = tl.load(where, mask=ok[:, None] & (dims < VALUE_DIM)[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(lse - base)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(share * weights[:, None], 0)
        top = new_top
    is_blind = total == 0.0
    denominator = total
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        denominator += tl.exp2(sink - tl.where(is_blind, 0.0, top))
    result = tl.where(is_blind, 0.0, acc / tl.where(is_blind, 1.0, denominator))
    tl.store(out + row * out_row + head * out_head + dims, result.to(out.dtype.element_ty), mask=dims < VALUE_DIM)


def is_interpreted() -> bool:
    """Say whether the kernels were made for Triton's interpreter (TRITON_INTERPRET), which runs them on a CPU."""
    return not isinstance(attend_items, triton.JITFunction)
