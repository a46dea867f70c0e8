"""The kernels of the backend `numba`: attention of single queries over stretches of paged keys. Knows no plans.

Everything that a kernel calls is in this file: the cache on disk follows a file's own changes only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.attention.jit import compiled

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(_typing: Any, bits: Any) -> Any:
    """Read an int32's bits as a float32."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(bits), emit


@compiled(exact=True)
def exp(x: np.float32) -> np.float32:
    """Return e**x for x <= 88, to about 1e-7 (Cephes expf): plain arithmetic, so that loops of it become vectors."""
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r -= n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))  # type: ignore[no-any-return]


@compiled()
def dot(a: F32, b: F32) -> np.float32:
    total = np.float32(0.0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@compiled()
def weigh(weights: F32, values: F32, head: int, slot: int, out: F32) -> None:
    """Add to `out` [Dv] the sum of weights [N] times the values of one head at the slots from `slot` on."""
    count, first = weights.shape[0], 0
    while first + 4 <= count:
        p0, p1, p2, p3 = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
        v0, v1 = values[slot + first, head], values[slot + first + 1, head]
        v2, v3 = values[slot + first + 2, head], values[slot + first + 3, head]
        for d in range(out.shape[0]):
            out[d] += p0 * v0[d] + p1 * v1[d] + p2 * v2[d] + p3 * v3[d]
        first += 4
    while first < count:
        p0, v0 = weights[first], values[slot + first, head]
        for d in range(out.shape[0]):
            out[d] += p0 * v0[d]
        first += 1


@compiled()
def soften(scores: F32, softcap: float) -> tuple[np.float32, np.float32]:
    """Turn logits [N] into e to the power of their distance from the largest; return that and their sum."""
    if softcap > 0:
        cap = np.float32(softcap)
        for j in range(scores.shape[0]):
            bounded = min(max(scores[j] / cap, np.float32(-20.0)), np.float32(20.0))
            scores[j] = cap - np.float32(2.0) * cap / (exp(np.float32(2.0) * bounded) + np.float32(1.0))
    top = scores[0]
    for j in range(1, scores.shape[0]):
        top = max(top, scores[j])
    total = np.float32(0.0)
    for j in range(scores.shape[0]):
        scores[j] = exp(scores[j] - top)
        total += scores[j]
    return top, total


@compiled()
def attend_stretch(
    query: F32, caches: tuple[F32, F32], head: int, stretch: tuple[I64, int, int, int], factors: tuple[float, float]
) -> tuple[F32, F32, F32]:
    """Attend from the queries [G, Dk] of one group over the positions [lo, hi) of one context.

    Returns the unnormalised outputs [G, Dv], the largest logits [G] and the sums [G] of the softmax.
    """
    keys, values = caches
    pages, page_tokens, lo, hi = stretch
    group = query.shape[0]
    scores = np.empty((group, hi - lo), np.float32)
    out = np.zeros((group, values.shape[2]), np.float32)
    tops, totals = np.empty(group, np.float32), np.empty(group, np.float32)
    for position in range(lo, hi):
        key = keys[pages[position // page_tokens] * page_tokens + position % page_tokens, head]
        for g in range(group):
            scores[g, position - lo] = dot(query[g], key) * np.float32(factors[0])
    for g in range(group):
        tops[g], totals[g] = soften(scores[g], factors[1])
    position = lo
    while position < hi:
        stop = min(hi, (position // page_tokens + 1) * page_tokens)
        slot = pages[position // page_tokens] * page_tokens + position % page_tokens
        for g in range(group):
            weigh(scores[g, position - lo : stop - lo], values, head, slot, out[g])
        position = stop
    return out, tops, totals


@compiled()
def merge_row(parts: tuple[F32, F32, F32], items: tuple[int, int], sinks: F32, out: F32) -> None:
    """Merge the partial results of one row's items [first, last) into `out` [H, Dv]; no items give zeros."""
    outs, tops, totals = parts
    first, last = items
    for h in range(out.shape[0]):
        out[h, :] = np.float32(0.0)
        if first == last:
            continue
        top = tops[first, h]
        for i in range(first + 1, last):
            top = max(top, tops[i, h])
        total = np.float32(0.0)
        if sinks.shape[0] > 0:
            top = max(top, sinks[h])
            total = exp(sinks[h] - top)
        for i in range(first, last):
            share = exp(tops[i, h] - top)
            total += share * totals[i, h]
            for d in range(out.shape[1]):
                out[h, d] += share * outs[i, h, d]
        for d in range(out.shape[1]):
            out[h, d] /= total


@compiled()
def write(slots: I64, key: F32, value: F32, caches: tuple[F32, F32]) -> None:
    """Write the new keys [T, KV, Dk] and values [T, KV, Dv] to their slots."""
    for row in range(slots.shape[0]):
        caches[0][slots[row]] = key[row]
        caches[1][slots[row]] = value[row]


@compiled(parallel=True)
def attend_items(
    heads: tuple[F32, F32],
    caches: tuple[F32, F32],
    work: tuple[I64, I64, I64, I64],
    factors: tuple[float, float, int],
    sinks: F32,
) -> None:
    """Attend from single rows of the queries [T, H, Dk] into the same rows of the outputs [T, H, Dv] (`heads`).

    `work`: items [N, 4] of (row, start in the page tables, lo, hi), all page tables in one, the R rows, and the
    [R + 1] bounds of their items. `factors`: scale, softcap (0: none), tokens per page. `sinks` [H], or [0] for none.
    """
    query, out = heads
    items, pages, rows, bounds = work
    num_kv = caches[0].shape[1]
    group = query.shape[1] // num_kv
    outs = np.empty((items.shape[0], query.shape[1], caches[1].shape[2]), np.float32)
    tops = np.empty((items.shape[0], query.shape[1]), np.float32)
    totals = np.empty((items.shape[0], query.shape[1]), np.float32)
    for index in prange(items.shape[0] * num_kv):
        i, head = index // num_kv, index % num_kv
        own = slice(head * group, (head + 1) * group)
        stretch = (pages[items[i, 1] :], factors[2], items[i, 2], items[i, 3])
        part, top, total = attend_stretch(query[items[i, 0], own], caches, head, stretch, (factors[0], factors[1]))
        outs[i, own], tops[i, own], totals[i, own] = part, top, total
    for r in range(rows.shape[0]):
        merge_row((outs, tops, totals), (bounds[r], bounds[r + 1]), sinks, out[rows[r]])
