"""The engine on a GPU, end to end: outputs as transformers computes them on the CPU, no step that waits for another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kea.engine.config import EngineConfig
from kea.engine.core import EngineCore
from kea.engine.sampling import Drawn, Sampler, SamplingRow
from kea.models import Tokenizer, require_embedded_model
from kea.models.graphs import GraphedDecoder
from kea.types import GenerateOptions
from tests.engine.driver import Driver, greedy
from tests.engine.oracle import compare_greedy
from tests.engine.test_bursts import sampled
from tests.engine.test_sampling_ahead import VOCAB, mixed

pytestmark = pytest.mark.gpu

TEXTS = ("Once upon a time", "Lily and Ben were friends. They", "The dog ran to the big tree and", "Tom") * 3


@pytest.fixture(scope="module")
def model() -> Path:
    return require_embedded_model()


def test_a_mixed_batch_is_what_transformers_computes(model: Path) -> None:
    core = EngineCore.load(EngineConfig(str(model), device="cuda", dtype="float32", kv_memory_bytes=1 << 28))
    assert core.info.backend == "triton"
    driver = Driver(core)
    tokenizer = Tokenizer.load(str(model))
    prompts = [tokenizer.encode(text) for text in TEXTS]
    options = [GenerateOptions(greedy(12 + i).stopping, greedy(1).sampling, logprobs=1) for i in range(len(prompts))]
    outputs = [driver.start(prompt, option) for prompt, option in zip(prompts, options, strict=True)]
    driver.run()
    decoder = core._model
    assert isinstance(decoder, GraphedDecoder)
    assert decoder.num_replayed > 10
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    for prompt, output in zip(prompts, outputs, strict=True):
        logprobs = [entry.logprob for entry in output.logprobs]
        assert compare_greedy(reference, prompt, output.token_ids, logprobs).max_logprob_error < 1e-3


def count_waits(work: Callable[[], object]) -> list[str]:
    """Return what torch says of every time that it waited for all that is queued. Reads behind an event are no such."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [str(one.message) for one in seen if "synchroniz" in str(one.message)]


def test_a_batch_of_draws_waits_for_its_tokens_alone() -> None:
    logits, samplings = mixed(24)
    logits = logits.to("cuda:0")
    sampler = Sampler(VOCAB, lambda: 7)
    drawn: list[list[object]] = []

    def sample() -> None:
        rows = [SamplingRow(sampler.create_state(sampling, [1, 2, 3])) for sampling in samplings]
        drawn.append(list(sampler.sample(logits, rows)))

    sample()
    assert count_waits(sample) == []
    assert drawn[0] == drawn[1]
    assert all(isinstance(row, Drawn) for row in drawn[1])


def test_steps_overlap_and_never_wait_for_what_was_just_launched(model: Path) -> None:
    """Decode steps of rows of every plain sampling; in the middle of them a prompt comes in."""
    core = EngineCore.load(EngineConfig(str(model), device="cuda", dtype="float32", kv_memory_bytes=1 << 28))
    assert core._limits.overlaps
    driver = Driver(core)
    tokenizer = Tokenizer.load(str(model))
    prompts = [tokenizer.encode(text) for text in TEXTS]
    options = [greedy(60), sampled(60, 1), sampled(60, 2, top_p=0.8), sampled(60, 3, top_k=20)] * 3

    def run() -> None:
        outputs = [driver.start(prompt, one) for prompt, one in zip(prompts, options, strict=True)]
        for _ in range(8):
            driver.step()
        outputs.append(driver.start(prompts[0], greedy(50)))
        driver.run()
        assert all(output.finish is not None for output in outputs)
        drawn.append([output.token_ids for output in outputs])

    drawn: list[list[list[int]]] = []
    run()
    assert count_waits(run) == []
    assert drawn[0] == drawn[1]
