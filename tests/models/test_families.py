"""Every family: our forward through pages equals transformers' own eager attention, whatever the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kea.models import DecoderModel, Tokenizer, load_model
from tests.models.families import FAMILIES, VOCAB_SIZE, WINDOW, build_model
from tests.models.paging import build_step, run_paged

LENGTHS = (75, 26, WINDOW["sliding_window"], 1)
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Loaded:
    """A family's tiny model as Kea runs it, texts, and their logits under transformers' eager attention."""

    decoder: DecoderModel
    texts: list[torch.Tensor]
    expected: list[torch.Tensor]


def random_texts(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


def eager_logits(model: Any, texts: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(input_ids=text[None], use_cache=False).logits[0].float() for text in texts]


@pytest.fixture(scope="module", params=[(name, backend) for name in FAMILIES for backend in ("auto", "torch")])
def loaded(request: pytest.FixtureRequest, family_path: Callable[[str], Path]) -> Loaded:
    """`auto` is the lean decoder where it covers the family, `torch` always transformers' own code."""
    name, backend = request.param
    texts = random_texts(5)
    decoder = load_model(family_path(name), backend=backend)
    return Loaded(decoder, texts, eager_logits(build_model(name), texts))


@pytest.mark.parametrize("max_chunk", [1, 7, 100])
def test_paged_logits_equal_eager_logits(loaded: Loaded, max_chunk: int) -> None:
    ours = run_paged(loaded.decoder, loaded.texts, max_chunk=max_chunk, seed=max_chunk)
    for logits, expected in zip(ours, loaded.expected, strict=True):
        assert (logits - expected).abs().max() < TOLERANCE


def test_the_test_can_fail_the_texts_tell_their_positions_apart(loaded: Loaded) -> None:
    """A reversed context must change the last logits by far more than the tolerance."""
    text = loaded.texts[1]
    shuffled = torch.cat([text[:-1].flip(0), text[-1:]])
    logits = run_paged(loaded.decoder, [shuffled], max_chunk=100)[0]
    assert (logits[-1] - loaded.expected[1][-1]).abs().max() > 100 * TOLERANCE


def test_the_trained_model_equals_its_eager_self(stories260k: Path) -> None:
    import transformers

    text = torch.tensor(Tokenizer.load(stories260k).encode("Once upon a time, there was a little girl named Lily."))
    model = transformers.AutoModelForCausalLM.from_pretrained(stories260k, attn_implementation="eager")
    expected = eager_logits(model, [text])[0]
    for backend in ("auto", "torch", "reference"):
        ours = run_paged(load_model(stories260k, backend=backend), [text], max_chunk=5)[0]
        assert (ours - expected).abs().max() < TOLERANCE


def test_only_the_wanted_rows_get_logits(loaded: Loaded) -> None:
    text = loaded.texts[2]
    step = build_step([text], [tuple(range(3))], [(0, 0, len(text))])
    wanted = torch.tensor([len(text) - 1, 2])
    cache = loaded.decoder.create_cache(16)
    logits = loaded.decoder.forward(replace(step, logit_rows=wanted), cache)
    assert logits.dtype == torch.float32
    assert (logits - loaded.expected[2][wanted]).abs().max() < TOLERANCE
    assert loaded.decoder.forward(replace(step, logit_rows=wanted[:0]), cache).shape == (0, VOCAB_SIZE)
