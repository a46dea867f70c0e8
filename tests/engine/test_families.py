"""Greedy outputs through the whole engine equal transformers', for a tiny random model of every family."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from kea.engine.config import EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.models import Tokenizer, load_model
from tests.engine.conftest import Clock
from tests.engine.driver import Driver, greedy
from tests.engine.oracle import compare_greedy
from tests.models.families import FAMILIES, VOCAB_SIZE, save_model
from tests.models.tokenizers_zoo import byte_level


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact_in_mixed_batches_forks_and_prefix_hits(
    family: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = save_model(family, tmp_path)
    model = load_model(path)
    reference = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    config = EngineConfig(
        str(path), kv_memory_bytes=40 * 8 * model.facts.kv_token_bytes, page_tokens=8, max_num_batched_tokens=13
    )
    driver = Driver(EngineCore(model, tokenizer, resolve_limits(config, model.facts, 0), Clock()))
    rng = random.Random(family)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in (1, 9, 30, 41)]
    prompts.append([*prompts[2][:21], 5, 6])  # hits a prefix in the middle of a page
    outputs = [driver.start(prompt, greedy(12)) for prompt in prompts]
    parent = driver.context()
    driver.append(parent, prompts[3])
    driver.run()
    forks = {at: driver.generate(driver.fork(parent, at), greedy(3)) for at in (1, 8, 19, 41)}
    driver.run()
    for prompt, output in zip(prompts, outputs, strict=True):
        compare_greedy(reference, prompt, output.token_ids)
    for at, output in forks.items():
        compare_greedy(reference, prompts[3][:at], output.token_ids)
