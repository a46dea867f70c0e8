"""Random steps for the attention contract: contexts of random length, scattered pages, gaps, windows, chunks."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from kea.attention.base import LayerCache, LayerSpec, Run, SequencePlan, StepPlan
from kea.attention.storage import pack, unpack


@dataclass(frozen=True, slots=True)
class Case:
    """A step, its layer, and what each context holds: keys [N, KV, Dk] and values [N, KV, Dv] by position, in fp64."""

    plan: StepPlan
    spec: LayerSpec
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cache: LayerCache
    contexts: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    sinks: torch.Tensor | None


def random_spec(rng: random.Random) -> LayerSpec:
    kv = rng.choice([1, 2, 4])
    key_dim = rng.choice([8, 16, 24])
    return LayerSpec(
        num_heads=kv * rng.choice([1, 2, 3]),
        num_kv_heads=kv,
        key_dim=key_dim,
        value_dim=rng.choice([key_dim, key_dim, 16, 32]),
        scale=rng.choice([key_dim**-0.5, 0.2]),
        window=rng.choice([None, None, 1, 3, 17, 40, 500]),
        softcap=rng.choice([None, None, 2.0, 30.0]),
    )


def random_runs(rng: random.Random, position: int, end: int) -> tuple[Run, ...]:
    """Cut [0, end) into runs with gaps; the queries' own positions [position, end) stay visible in the last one."""
    cuts = sorted(rng.sample(range(position + 1), k=min(position + 1, 2 * rng.randint(0, 3))))
    runs: list[Run] = []
    start = 0
    for stop, resume in zip(cuts[::2], cuts[1::2], strict=False):
        if stop > start:
            runs.append(Run(start, stop, random_left(rng)))
        start = resume
    return (*runs, Run(start, end, random_left(rng)))


def random_left(rng: random.Random) -> int | None:
    return rng.choice([None, None, None, 0, 5, 33])


def covered_pages(runs: tuple[Run, ...], page_tokens: int) -> set[int]:
    return {page for run in runs for page in range(run.start // page_tokens, (run.stop - 1) // page_tokens + 1)}


def random_case(
    seed: int,
    *,
    num_sequences: int | None = None,
    dtype: torch.dtype = torch.float32,
    like: Case | None = None,
) -> Case:
    """Return a random step; `like` another one in its layer and its pages' size."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    spec = random_spec(rng)
    page_tokens = rng.choice([1, 4, 16])
    if like is not None:
        spec, page_tokens = like.spec, like.plan.page_tokens
    count = num_sequences or rng.randint(1, 7)
    shapes = [_random_shape(rng) for _ in range(count)]
    runs = [random_runs(rng, position, position + queries) for position, queries in shapes]
    tables, num_pages = _scattered_tables(rng, shapes, runs, page_tokens)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    contexts = [
        (noise(p + q, spec.num_kv_heads, spec.key_dim), noise(p + q, spec.num_kv_heads, spec.value_dim))
        for p, q in shapes
    ]
    keys = noise(num_pages * page_tokens, spec.num_kv_heads, spec.key_dim)
    values = noise(num_pages * page_tokens, spec.num_kv_heads, spec.value_dim)
    sequences, slots = [], []
    row = 0
    for (position, queries), seen, table, (k, v) in zip(shapes, runs, tables, contexts, strict=True):
        sequences.append(SequencePlan(row, queries, position, table, seen))
        slots += [table[j // page_tokens] * page_tokens + j % page_tokens for j in range(position, position + queries)]
        for j in range(position):
            if table[j // page_tokens] >= 0:
                keys[table[j // page_tokens] * page_tokens + j % page_tokens] = k[j]
                values[table[j // page_tokens] * page_tokens + j % page_tokens] = v[j]
        row += queries
    return Case(
        plan=StepPlan(tuple(sequences), torch.tensor(slots), page_tokens),
        spec=spec,
        query=noise(row, spec.num_heads, spec.key_dim).to(dtype),
        key=torch.cat([k[p:] for (p, _), (k, _) in zip(shapes, contexts, strict=True)]).to(dtype),
        value=torch.cat([v[p:] for (p, _), (_, v) in zip(shapes, contexts, strict=True)]).to(dtype),
        cache=LayerCache(keys.to(dtype), values.to(dtype)),
        contexts=tuple(contexts),
        sinks=rng.choice([None, noise(spec.num_heads).to(dtype)]),
    )


def _random_shape(rng: random.Random) -> tuple[int, int]:
    """Return (tokens already computed, new queries): decode rows, chunks, whole prompts."""
    kind = rng.choice(["decode", "decode", "chunk", "prompt"])
    if kind == "decode":
        return rng.randint(0, 150), 1
    if kind == "chunk":
        return rng.randint(1, 100), rng.randint(2, 40)
    return 0, rng.randint(1, 60)


def _scattered_tables(
    rng: random.Random, shapes: list[tuple[int, int]], runs: list[tuple[Run, ...]], page_tokens: int
) -> tuple[list[tuple[int, ...]], int]:
    """Give every covered page, and the pages of the new tokens, a random physical page; leave holes of -1 elsewhere."""
    needed = []
    for (position, queries), seen in zip(shapes, runs, strict=True):
        new = set(range(position // page_tokens, (position + queries - 1) // page_tokens + 1))
        needed.append(sorted(covered_pages(seen, page_tokens) | new))
    num_pages = sum(map(len, needed)) + 5
    free = rng.sample(range(num_pages), num_pages)
    tables = []
    for pages in needed:
        table = [-1] * (pages[-1] + 1)
        for page in pages:
            table[page] = free.pop()
        tables.append(tuple(table))
    return tables, num_pages


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """Return the step over a cache of this type; `contexts` become what it holds of them."""

    def kept(values: torch.Tensor) -> torch.Tensor:
        return unpack(pack(values.float(), dtype)).double()

    cache = LayerCache(pack(case.cache.keys, dtype), pack(case.cache.values, dtype))
    return replace(case, cache=cache, contexts=tuple((kept(keys), kept(values)) for keys, values in case.contexts))


def dense_oracle(case: Case) -> torch.Tensor:
    """Attend in fp64 with one dense matrix and one boolean mask per context: no pages, no runs' partial results."""
    spec = case.spec
    outputs = []
    for sequence, (keys, values) in zip(case.plan.sequences, case.contexts, strict=True):
        rows = slice(sequence.row_start, sequence.row_start + sequence.num_queries)
        group = spec.num_heads // spec.num_kv_heads
        k = keys.repeat_interleave(group, 1)
        v = values.repeat_interleave(group, 1)
        logits = torch.einsum("qhd,nhd->hqn", case.query[rows].double(), k) * spec.scale
        if spec.softcap is not None:
            logits = spec.softcap * torch.tanh(logits / spec.softcap)
        logits = logits.masked_fill(~dense_mask(sequence, spec.window), float("-inf"))
        if case.sinks is not None:
            logits = torch.cat([logits, case.sinks.double()[:, None, None].expand(-1, logits.shape[1], 1)], dim=-1)
        weights = torch.softmax(logits, dim=-1)[..., : keys.shape[0]]
        outputs.append(torch.einsum("hqn,nhd->qhd", weights.nan_to_num(0.0), v))
    return torch.cat(outputs)


def dense_mask(sequence: SequencePlan, window: int | None) -> torch.Tensor:
    """Return [Q, N] bool: which positions each query sees."""
    end = sequence.position + sequence.num_queries
    t = torch.arange(sequence.position, end)[:, None]
    j = torch.arange(end)[None]
    seen = torch.zeros(sequence.num_queries, end, dtype=torch.bool)
    for run in sequence.runs:
        inside = (j >= run.start) & (j < run.stop)
        seen |= inside if run.left is None else inside & (t - j <= run.left)
    seen &= j <= t
    return seen if window is None else seen & (t - j < window)
