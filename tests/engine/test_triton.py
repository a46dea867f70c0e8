"""The whole engine over the backend `triton`, its kernels interpreted: prompts in chunks, decode, a shared prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from kea.engine.config import EngineConfig
from kea.engine.core import EngineCore
from kea.models import Tokenizer
from tests.engine.driver import Driver, greedy
from tests.engine.oracle import compare_greedy


def test_outputs_equal_transformers(
    stories260k: Path, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    config = EngineConfig(
        str(stories260k),
        device="cpu",
        backend="triton",
        max_num_batched_tokens=24,
        page_tokens=4,
        kv_memory_bytes=1 << 20,
    )
    driver = Driver(EngineCore.load(config))
    common = "Lily and Ben were friends. They"
    prompts = [stories_tokenizer.encode(text) for text in (common + " went", common + " had a", "Tom")]
    outputs = [driver.start(prompt, greedy(3)) for prompt in prompts]
    driver.run()
    for prompt, output in zip(prompts, outputs, strict=True):
        assert compare_greedy(stories_reference, prompt, output.token_ids).num_equal >= 2
