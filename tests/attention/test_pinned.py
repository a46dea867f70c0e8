"""Pinned runs: a query beyond their position sees them as if it stood there (StreamingLLM's sinks, exactly)."""

from __future__ import annotations

import pytest
import torch

from kea.attention import LayerCache, LayerSpec, Rotary, Run, SequencePlan, StepPlan, create_backend
from kea.errors import Unsupported

NUM_SINKS, NUM_RECENT, PAGE = 3, 8, 4
ROTARIES = {
    "halves": Rotary(tuple(10000.0 ** (-i / 8) for i in range(8))),
    "pairs": Rotary((1.0, 0.3, 0.01), pairs=True),
    "partial": Rotary((1.0, 0.1), first=6),
}


def rotate(x: torch.Tensor, positions: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate [N, H, 16] in fp64, by complex numbers."""
    count = len(rotary.frequencies)
    part = x[..., rotary.first : rotary.first + 2 * count].double()
    first, second = (part[..., ::2], part[..., 1::2]) if rotary.pairs else (part[..., :count], part[..., count:])
    phases = positions[:, None, None] * torch.tensor(rotary.frequencies, dtype=torch.float64)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(phases), phases)
    result = x.double().clone()
    pair = (turned.real, turned.imag)
    joined = torch.stack(pair, -1).flatten(-2) if rotary.pairs else torch.cat(pair, -1)
    result[..., rotary.first : rotary.first + 2 * count] = joined
    return result


def streaming_runs(position: int, end: int) -> tuple[Run, ...]:
    cache_len = NUM_SINKS + NUM_RECENT
    if end <= cache_len + 1:
        return (Run(0, end),)
    return (Run(0, NUM_SINKS, pinned=cache_len), Run(NUM_SINKS, end, left=NUM_RECENT))


def streaming_oracle(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, rotary: Rotary
) -> torch.Tensor:
    """Attend as the paper does: the cache's tokens at positions 0, 1, ... in the cache, keys rotated to them."""
    outputs = []
    for i, q in enumerate(query):
        t = position + i
        cached = [j for j in range(t + 1) if j < NUM_SINKS or j >= t - NUM_RECENT]
        place = torch.arange(len(cached))
        k = rotate(keys[cached], place, rotary)
        logits = torch.einsum("hd,nhd->hn", rotate(q[None], place[-1:], rotary)[0], k) * 0.25
        outputs.append(torch.einsum("hn,nhd->hd", logits.softmax(-1), values[cached].double()))
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("layout", ROTARIES)
@pytest.mark.parametrize(("position", "num_queries"), [(40, 1), (0, 30), (9, 5), (2_000_000, 1)])
def test_sinks_and_a_window_over_one_cache_are_the_papers_attention(
    name: str, layout: str, position: int, num_queries: int
) -> None:
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    rotary = ROTARIES[layout]
    generator = torch.Generator().manual_seed(0)
    skipped = max(0, position - 60)  # far positions: what lies between sinks and window has no pages
    end = position + num_queries
    kept = [j for j in range(end) if j < 8 or j >= skipped // PAGE * PAGE] if skipped else list(range(end))
    plain_q = torch.randn(num_queries, 2, 16, generator=generator)
    plain_k, v = (torch.randn(len(kept), 2, 16, generator=generator) for _ in range(2))
    q = rotate(plain_q, torch.arange(position, end), rotary).float()
    k = rotate(plain_k, torch.tensor(kept), rotary).float()
    pages = sorted({j // PAGE for j in kept})
    table = [-1] * (pages[-1] + 1)
    for physical, page in enumerate(pages):
        table[page] = physical
    slots = torch.tensor([table[j // PAGE] * PAGE + j % PAGE for j in kept])
    cache = LayerCache(torch.zeros(len(pages) * PAGE, 2, 16), torch.zeros(len(pages) * PAGE, 2, 16))
    cache.keys[slots], cache.values[slots] = k, v
    sequence = SequencePlan(0, num_queries, position, tuple(table), streaming_runs(position, end))
    plan = StepPlan((sequence,), slots[-num_queries:], PAGE)
    spec = LayerSpec(2, 2, 16, 16, 0.25, rotary=rotary)
    output = create_backend(name).prepare(plan).attend(spec, q, k[-num_queries:], v[-num_queries:], cache)
    if skipped:
        expected = far_oracle(plain_q, plain_k, v, kept, rotary)
    else:
        expected = streaming_oracle(plain_q, plain_k, v, position, rotary)
    assert (output.double() - expected).abs().max() < 1e-5


def far_oracle(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kept: list[int], rotary: Rotary
) -> torch.Tensor:
    """Attend with the last query alone, as far from its beginning as a short context is: only the cache counts."""
    chosen = [*range(NUM_SINKS), *range(len(kept) - NUM_RECENT - 1, len(kept))]
    return streaming_oracle(query, keys[chosen], values[chosen], len(chosen) - 1, rotary)


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_a_backend_that_does_not_rotate_refuses(name: str) -> None:
    plan = StepPlan((SequencePlan(0, 1, 20, tuple(range(6)), streaming_runs(20, 21)),), torch.tensor([20]), PAGE)
    with pytest.raises(Unsupported, match=f"backend '{name}' does not rotate queries"):
        create_backend(name).prepare(plan)


def test_a_layer_without_known_frequencies_is_refused() -> None:
    plan = StepPlan((SequencePlan(0, 1, 20, tuple(range(6)), streaming_runs(20, 21)),), torch.tensor([20]), PAGE)
    row, cache = torch.zeros(1, 2, 16), LayerCache(torch.zeros(24, 2, 16), torch.zeros(24, 2, 16))
    with pytest.raises(Unsupported, match="rotary frequencies are not known"):
        create_backend("reference").prepare(plan).attend(LayerSpec(2, 2, 16, 16, 0.25), row, row, row, cache)
