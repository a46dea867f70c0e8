"""Captured steps: small steps replayed from fixed memory give what the decoder computes; others are not replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from kea.attention.base import LayerCache, PreparedPlan
from kea.models import CapturingDecoder, load_model
from kea.models.base import StepInput
from kea.models.graphs import GraphDecoder, GraphedDecoder
from kea.models.hosted import HostedDecoder
from tests.fakes.recorder import ComputingRecorder
from tests.models.paging import PAGE_TOKENS, build_step, run_paged

pytest.importorskip("triton", reason="Triton is not installed")
from kea.attention.triton_gpu import TritonAttention
from kea.models.lean.triton_decoder import TritonDecoder


class CapturingAtOnce(GraphedDecoder):
    """Captures its steps as soon as there is a cache, as an engine's runner does."""

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        cache = super().create_cache(num_slots)
        self.capture(cache, PAGE_TOKENS, max_rows=8)
        return cache


def create(path: Path, sizes: Sequence[int] = (2, 4, 8)) -> tuple[CapturingAtOnce, GraphDecoder, ComputingRecorder]:
    """Return a graphed decoder, the decoder in it, and its recorder."""
    decoder = load_model(path, backend="triton")
    assert isinstance(decoder, HostedDecoder | TritonDecoder)
    recorder = ComputingRecorder()
    return CapturingAtOnce(decoder, TritonAttention(), recorder, sizes), decoder, recorder


def texts(vocab_size: int, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_replayed_steps_equal_computed_ones(family: str, family_path: Callable[[str], Path]) -> None:
    graphed, decoder, recorder = create(family_path(family))
    inputs = texts(decoder.facts.vocab_size, 11, 7, 9, 3)
    expected = run_paged(decoder, inputs, max_chunk=3)
    actual = run_paged(graphed, inputs, max_chunk=3)
    assert recorder.num_captured == 6  # three sizes, with and without room for large blocks
    assert graphed.num_replayed > 3
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5


def decode_step(inputs: Sequence[torch.Tensor], tables: Sequence[tuple[int, ...]], chosen: Sequence[int]) -> StepInput:
    return build_step(inputs, tables, [(i, len(inputs[i]) - 1, len(inputs[i])) for i in chosen])


def test_a_step_does_not_see_what_a_larger_one_left_in_the_fixed_memory(family_path: Callable[[str], Path]) -> None:
    graphed, decoder, _ = create(family_path("llama"), sizes=(4,))
    inputs = texts(decoder.facts.vocab_size, 9, 6, 8, 5)
    tables = [(0, 1, 2), (3, 4), (5, 6), (7, 8)]
    cache = graphed.create_cache(9 * PAGE_TOKENS)
    graphed.forward(build_step(inputs, tables, [(i, 0, len(text) - 1) for i, text in enumerate(inputs)]), cache)
    assert graphed.num_computed == 1
    for chosen in ((0, 1, 2, 3), (2,), (3, 1), (1,)):
        step = decode_step(inputs, tables, chosen)
        before = [layer.keys.clone() for layer in cache]
        replayed = graphed.forward(step, cache).clone()
        outside = torch.ones(9 * PAGE_TOKENS, dtype=torch.bool)
        outside[step.plan.slots] = False
        assert all(torch.equal(layer.keys[outside], old[outside]) for layer, old in zip(cache, before, strict=True))
        assert (replayed - decoder.forward(step, cache)).abs().max() < 1e-5
    assert (graphed.num_replayed, graphed.num_computed) == (4, 1)


def test_a_step_over_another_cache_or_of_too_many_rows_is_computed(family_path: Callable[[str], Path]) -> None:
    graphed, decoder, _ = create(family_path("llama"), sizes=(2,))
    inputs = texts(decoder.facts.vocab_size, 2, 2, 2)
    tables = [(0,), (1,), (2,)]
    graphed.create_cache(3 * PAGE_TOKENS)
    graphed.forward(decode_step(inputs, tables, (0,)), decoder.create_cache(3 * PAGE_TOKENS))
    assert (graphed.num_replayed, graphed.num_computed) == (0, 1)
    cache = graphed.create_cache(3 * PAGE_TOKENS)
    graphed.forward(decode_step(inputs, tables, (0, 1, 2)), cache)
    assert (graphed.num_replayed, graphed.num_computed) == (0, 2)
    graphed.forward(decode_step(inputs, tables, (0, 2)), cache)
    assert (graphed.num_replayed, graphed.num_computed) == (1, 2)


class Waiting:
    """A decoder whose code cannot be captured, as one that reads a tensor's value back."""

    def __init__(self, decoder: GraphDecoder) -> None:
        self.facts = decoder.facts
        self.create_cache = decoder.create_cache
        self.forward = decoder.forward

    def compute(self, step: StepInput, prepared: PreparedPlan, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_decoder_that_cannot_be_captured_is_run_and_the_reason_logged(
    family_path: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, decoder, _ = create(family_path("llama"))
    graphed = CapturingAtOnce(Waiting(decoder), TritonAttention(), ComputingRecorder(), (2,))
    inputs = texts(decoder.facts.vocab_size, 5, 4)
    with caplog.at_level(logging.WARNING):
        actual = run_paged(graphed, inputs, max_chunk=2)
    assert "cannot be captured as a CUDA graph" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text
    assert graphed.num_replayed == 0
    for ours, theirs in zip(actual, run_paged(decoder, inputs, max_chunk=2), strict=True):
        assert torch.equal(ours, theirs)


def test_only_a_graphed_decoder_is_captured(family_path: Callable[[str], Path]) -> None:
    graphed, decoder, _ = create(family_path("llama"))
    assert isinstance(graphed, CapturingDecoder)
    assert not isinstance(decoder, CapturingDecoder)
