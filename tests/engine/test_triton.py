"""The whole engine over the backend `triton`, its kernels interpreted: prompts in chunks, decode, a shared prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from kea.engine.config import DecodingConfig, EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.engine.sampling import Sampler, choose_rows_ahead
from kea.models import Tokenizer, load_model
from tests.engine.conftest import Clock, MakeDriver
from tests.engine.driver import Driver, greedy
from tests.engine.oracle import compare_greedy
from tests.engine.test_bursts import sampled
from tests.fakes.recorder import ComputingRecorder


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


def test_captured_steps_that_overlap_give_what_single_ones_do(
    make_driver: MakeDriver, stories260k: Path, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path of a GPU: a step's logits are gone when its tokens are read, the next one runs by then."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from kea.attention.triton_gpu import TritonAttention
    from kea.models.graphs import GraphedDecoder
    from kea.models.lean.triton_decoder import TritonDecoder

    prompts = [stories_tokenizer.encode(text) for text in ("Lily and Ben", "Tom")]
    options = [greedy(3), sampled(4, 1, top_p=0.5)]

    def run(driver: Driver) -> list[list[int]]:
        outputs = [driver.start(prompt, one) for prompt, one in zip(prompts, options, strict=True)]
        driver.run()
        return [output.token_ids for output in outputs]

    expected = run(make_driver())
    monkeypatch.setattr(Sampler, "_choose", lambda _, logits, rows: choose_rows_ahead(logits, rows))
    decoder = load_model(stories260k, backend="triton")
    assert isinstance(decoder, TritonDecoder)
    graphed = GraphedDecoder(decoder, TritonAttention(), ComputingRecorder(), (2,))
    fields = {"kv_memory_bytes": 1 << 20, "page_tokens": 4, "max_num_seqs": 2}
    config = EngineConfig(str(stories260k), decoding=DecodingConfig(overlap=True), **fields)  # type: ignore[arg-type]
    assert (
        run(Driver(EngineCore(graphed, stories_tokenizer, resolve_limits(config, decoder.facts, 0), Clock())))
        == expected
    )
    assert graphed.num_replayed >= 2
