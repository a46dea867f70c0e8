"""The engine on a GPU, end to end: outputs as transformers computes them on the CPU, one read per batch of draws."""

from __future__ import annotations

import warnings
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


def test_a_batch_of_draws_waits_once() -> None:
    logits, samplings = mixed(24)
    logits = logits.to("cuda:0")
    sampler = Sampler(VOCAB, lambda: 7)

    def sample() -> list[object]:
        rows = [SamplingRow(sampler.create_state(sampling, [1, 2, 3])) for sampling in samplings]
        return list(sampler.sample(logits, rows))

    first = sample()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            second = sample()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert first == second
    assert all(isinstance(row, Drawn) for row in second)
    assert len([w for w in seen if "synchroniz" in str(w.message)]) == 1
