"""The CPU's kernels of drawing: a token of each row's truncated distribution.

The rules are those of `kea.engine.drawing`, row by row in one go instead of an operator at a time over all rows. Knows
no requests.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.kernels.jit import compiled
from kea.kernels.machine import call_kernel, f32_at, f64_at, float_of_bits, i64_at, u64_at
from kea.kernels.program import Kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

I32 = NDArray[np.int32]

BLOCK = 128
BELOW_ONE = 1.0 - 2.0**-53
NO_TOKEN = -1
INFINITY_BITS = np.int32(0x7F800000)
LEAST_Z = -87.0  # below it e**z is no normal fp32 number: nothing


@compiled(exact=True)
def exp(x: np.float32) -> np.float32:
    """Return e**x for -87 <= x <= 0, to about 1e-7 (Cephes expf): plain arithmetic, so that loops become vectors."""
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
    return p * float_of_bits(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))  # type: ignore[no-any-return]


@compiled(exact=True)
def weight(logit: np.float32, best: np.float32, temperature: np.float32, least: np.float32) -> np.float32:
    """Return exp((logit - best) / temperature), 0 where the exponent is below `least`."""
    z = (logit - best) / temperature
    kept = z >= least
    return exp(z if kept else np.float32(0.0)) * np.float32(kept)


@compiled(exact=True)
def mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled(exact=True)
def key_of(seed: np.uint64, index: np.uint64) -> np.uint64:
    """Return a draw's key: `kea.engine.drawing.Noise.key` of a seed's lowest 64 bits."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    return mix(mix(seed ^ golden) + (index + np.uint64(1)) * golden)


@compiled(exact=True)
def uniform(key: np.uint64, attempt: int) -> float:
    """Return the number in [0, 1) of a draw's key and an attempt; see `kea.engine.drawing.Noise`."""
    if attempt:
        key = mix(key + np.uint64(attempt) * np.uint64(0x9E3779B97F4A7C15))
    return float(key >> np.uint64(11)) * 2.0**-53


@compiled()
def sum_of(w: F32) -> float:
    total = np.float32(0.0)
    for i in range(w.shape[0]):
        total += w[i]
    return float(total)


@compiled()
def accumulate(w: F32, sums: F64) -> float:
    """Write the running sums of the blocks of `w`; return the last one."""
    total = 0.0
    for block in range(sums.shape[0]):
        total += sum_of(w[block * BLOCK : (block + 1) * BLOCK])
        sums[block] = total
    return total


@compiled(exact=True)
def invert(w: F32, sums: F64, share: float) -> int:
    """Return the first token whose running weight exceeds this share of all: the block, then the token in it.

    A token of weight 0 is never returned: a number below 1 times a sum is below the sum.
    """
    target = share * sums[-1]
    block = 0
    while sums[block] <= target:
        block += 1
    start = sums[block - 1] if block > 0 else 0.0
    inside = w[block * BLOCK : (block + 1) * BLOCK]
    total = 0.0
    for i in range(inside.shape[0]):
        total += float(inside[i])
    goal = min((target - start) / (sums[block] - start), BELOW_ONE) * total
    i, running = 0, float(inside[0])
    while running <= goal:
        i += 1
        running += float(inside[i])
    return block * BLOCK + i


@compiled()
def weight_before(row: F32, w: F32, token: int) -> float:
    """Return the weight of the tokens that rank before `token`: better, or as good with a lower id."""
    value, total = row[token], 0.0
    for start in range(0, w.shape[0], BLOCK):
        stop = min(start + BLOCK, w.shape[0])
        part = np.float32(0.0)
        for i in range(start, stop):
            part += w[i] * np.float32((row[i] > value) | ((row[i] == value) & (i < token)))
        total += float(part)
    return total


@compiled()
def draw_by_weight(row: F32, w: F32, sums: F64, top_p: float, key: np.uint64) -> int:
    """Draw from the weights `w`, and, with `top_p` below 1, again among the tokens before one outside the nucleus."""
    limit = top_p * accumulate(w, sums)
    attempt = 0
    while True:
        token = invert(w, sums, uniform(key, attempt))
        if top_p >= 1.0 or weight_before(row, w, token) < limit:
            return token
        value = row[token]
        for i in range(w.shape[0]):
            is_before = row[i] > value or (row[i] == value and i < token)
            w[i] *= np.float32(is_before)
        accumulate(w, sums)
        attempt += 1


@compiled(exact=True)
def sift(row: F32, heap: I64, place: int, size: int) -> None:
    """Restore a heap of token ids whose root ranks last, below `place`."""
    token = heap[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and ranks_behind(row, heap[child + 1], heap[child]):
            child += 1
        if not ranks_behind(row, heap[child], token):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = token


@compiled(exact=True)
def ranks_behind(row: F32, first: int, second: int) -> bool:
    return row[first] < row[second] or (row[first] == row[second] and first > second)


@compiled(exact=True)
def push_better(row: F32, heap: I64, start: int, stop: int) -> None:
    """Put the ids of [start, stop) into a full heap that rank before its root, in its place."""
    for i in range(start, stop):
        if row[i] > row[heap[0]]:
            heap[0] = i
            sift(row, heap, 0, heap.shape[0])


@compiled(exact=True)
def find_top(row: F32, heap: I64) -> None:
    """Write the ids of the best tokens, best first, as many as `heap` is long."""
    size = heap.shape[0]
    for i in range(size):
        heap[i] = i
    for place in range(size // 2 - 1, -1, -1):
        sift(row, heap, place, size)
    for start in range(size, row.shape[0], BLOCK):
        stop = min(start + BLOCK, row.shape[0])
        worst, num_better = row[heap[0]], 0
        for i in range(start, stop):  # counted first, which a vector does; few blocks have any
            num_better += row[i] > worst
        if num_better > 0:
            push_better(row, heap, start, stop)
    for last in range(size - 1, 0, -1):
        heap[0], heap[last] = heap[last], heap[0]
        sift(row, heap, 0, last)


@compiled(exact=True)
def draw_top(row: F32, top: I64, scale: tuple[np.float32, np.float32, np.float32], top_p: float, share: float) -> int:
    """Draw among the tokens `top`, best first, of which `top_p` keeps the first ones; in the order of their ids."""
    best, temperature, least = scale
    total = 0.0
    for i in range(top.shape[0]):
        total += float(weight(row[top[i]], best, temperature, least))
    running, num_kept = 0.0, 0
    while num_kept < top.shape[0] and (num_kept == 0 or running < top_p * total):
        w = float(weight(row[top[num_kept]], best, temperature, least))
        if w == 0.0:
            break
        running += w
        num_kept += 1
    kept = np.sort(top[:num_kept])
    total = 0.0
    for i in range(num_kept):
        total += float(weight(row[kept[i]], best, temperature, least))
    running, i = float(weight(row[kept[0]], best, temperature, least)), 0
    while running <= share * total and i + 1 < num_kept:
        i += 1
        running += float(weight(row[kept[i]], best, temperature, least))
    return int(kept[i])


@compiled()
def weigh(row: F32, scale: tuple[np.float32, np.float32, np.float32], w: F32) -> None:
    best, temperature, least = scale
    for i in range(row.shape[0]):
        w[i] = weight(row[i], best, temperature, least)


@compiled(exact=True)
def highest(bits: I32) -> tuple[np.int32, np.int32]:
    """Return the greatest of some fp32 numbers, as bits in an order of integers, and the greatest bits of a magnitude.

    Of integers, so that the loop becomes vectors: with numbers that may be no numbers it would not.
    """
    high, size = np.int32(-0x80000000), np.int32(0)
    for i in range(bits.shape[0]):
        magnitude = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        high = max(high, np.int32(bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))))
        size = max(size, magnitude)
    return high, size


@compiled(exact=True)
def find_best(row: F32) -> int:
    """Return the best token, of equal ones the first; `NO_TOKEN` where no logit is finite or one is not a number."""
    bits = row.view(np.int32)
    high, place = np.int32(-0x80000000), 0
    for start in range(0, row.shape[0], BLOCK):
        block_high, size = highest(bits[start : start + BLOCK])
        if size > INFINITY_BITS:
            return NO_TOKEN
        if block_high > high and not (block_high == 0 and high == -1):  # 0.0 is as good as the -0.0 before it
            high, place = block_high, start
    if high == INFINITY_BITS or high == (INFINITY_BITS ^ np.int32(-1)):
        return NO_TOKEN
    best = row[place]
    for i in range(place, min(place + BLOCK, row.shape[0])):
        if row[i] > best:
            best, place = row[i], i
    return place


@compiled()
def draw_part(logits: F32, settings: F64, noise: U64, drawn: I64) -> None:
    """Choose a token for each row [R, V], or `NO_TOKEN`. `settings` [R, 4]: temperature, least exponent, top_p, top_k.

    The best one where the temperature is 0; else one drawn with `noise` [R, 2]: the seed and the index of the draw.
    """
    width = logits.shape[1]
    w = np.empty(width, np.float32)
    sums = np.empty((width + BLOCK - 1) // BLOCK, np.float64)
    for row in range(logits.shape[0]):
        temperature, least, top_p, most = settings[row]
        drawn[row] = best = find_best(logits[row])
        if best == NO_TOKEN or temperature == 0.0:
            continue
        top_k = int(most)
        scale = (logits[row, best], np.float32(temperature), np.float32(least))
        key = key_of(noise[row, 0], noise[row, 1])
        if 0 < top_k < width:
            top = np.empty(top_k, np.int64)
            find_top(logits[row], top)
            drawn[row] = draw_top(logits[row], top, scale, top_p, uniform(key, 0))
        else:
            weigh(logits[row], scale, w)
            drawn[row] = draw_by_weight(logits[row], w, sums, top_p, key)


# Arguments of `draw`: the address of LOGITS, rows of STRIDE values, of which the first VOCAB_SIZE count; of the rows'
# SETTINGS [R, 4] fp64, NOISE [R, 2] uint64 and DRAWN [R] int64.
LOGITS, STRIDE, VOCAB_SIZE, SETTINGS, NOISE, DRAWN, NUM_DRAW = range(7)
NUM_SETTINGS, NUM_NOISE = 4, 2


def draw(address: int, row: int) -> None:
    """Choose one row's token."""
    a = carray(i64_at(address), NUM_DRAW)
    logits = carray(f32_at(a[LOGITS] + 4 * row * a[STRIDE]), (1, a[VOCAB_SIZE]))
    settings = carray(f64_at(a[SETTINGS] + 8 * row * NUM_SETTINGS), (1, NUM_SETTINGS))
    noise = carray(u64_at(a[NOISE] + 8 * row * NUM_NOISE), (1, NUM_NOISE))
    draw_part(logits, settings, noise, carray(i64_at(a[DRAWN] + 8 * row), 1))


DRAW = Kernel(draw)
"""Whoever draws a row runs this machine code, so that a draw is the same wherever it is made."""


@compiled()
def draw_rows(code: int, arguments: int, num_rows: int) -> None:
    """Choose the tokens of all rows on this thread, by the kernel at an address."""
    for row in range(num_rows):
        call_kernel(code, arguments, row)
