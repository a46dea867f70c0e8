"""The engine over KV that are kept in less: the exactness suite, against transformers with its KV rounded alike."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kea.engine.config import EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.errors import InvalidRequest
from kea.models import DecoderModel, Tokenizer, load_model
from tests.engine import oracle, test_bursts, test_exactness, test_faults
from tests.engine.oracle import reference_logits
from tests.engine.rounding import round_kv

EXACT_TOKEN_BYTES = 5 * 4 * (8 + 8) * 4  # layers, KV heads, keys and values, of 4 bytes
TOKEN_BYTES = {"float16": EXACT_TOKEN_BYTES // 2, "int8": 5 * 4 * (12 + 12)}  # 8 and the scale
MAX_ERROR = 5e-3
"""In log-probabilities: a key that differs in its last bit may be rounded the other way."""

# Collected here too: with the models of this module.
test_mixed_batch = test_exactness.test_mixed_batch_equals_each_request_alone
test_preempted_requests = test_exactness.test_preempted_requests_are_recomputed_exactly
test_forks = test_exactness.test_forks_at_every_token_are_exact
test_prefix_hits = test_exactness.test_prefix_hits_at_any_token_are_exact
test_truncated_context = test_exactness.test_truncated_context_goes_on_exactly
test_dropped_tokens = test_exactness.test_dropped_tokens_are_seen_by_nobody_later
test_prompt_logprobs = test_exactness.test_prompt_logprobs_are_transformers
test_numbers_not_finite = test_faults.test_numbers_that_are_not_finite_reach_no_other_request
test_row_not_finite = test_bursts.test_a_row_that_is_not_finite_fails_alone_and_reaches_no_other
prompt = test_faults.prompt


@pytest.fixture(scope="module", params=TOKEN_BYTES)
def kind(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture(scope="module")
def stories_model(stories260k: Path, kind: str) -> DecoderModel:
    return load_model(stories260k, kv_cache_dtype=kind)


@pytest.fixture(scope="module")
def stories_reference(stories260k: Path, kind: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(stories260k, attn_implementation="eager")
    return round_kv(model, getattr(torch, kind))


@pytest.fixture(autouse=True)
def _allow_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_exactness, "MAX_ERROR", MAX_ERROR)
    monkeypatch.setattr(oracle, "TIE", MAX_ERROR)


def test_rounding_to_int8_moves_the_reference_by_more_than_what_is_allowed_here(
    stories260k: Path, stories_tokenizer: Tokenizer
) -> None:
    models = [AutoModelForCausalLM.from_pretrained(stories260k, attn_implementation="eager") for _ in range(2)]
    round_kv(models[1], torch.int8)
    ids = stories_tokenizer.encode(test_exactness.TEXTS[3])
    exact, rounded = (reference_logits(model, ids).log_softmax(-1) for model in models)
    assert (exact - rounded).abs().max() > 10 * MAX_ERROR


def test_a_budget_buys_pages_for_what_a_token_takes(
    stories260k: Path, stories_model: DecoderModel, stories_tokenizer: Tokenizer, kind: str
) -> None:
    token_bytes = TOKEN_BYTES[kind]
    assert stories_model.facts.kv_token_bytes == token_bytes
    cache = stories_model.create_cache(16)
    assert sum(part.nbytes for layer in cache for part in (layer.keys, layer.values)) == 16 * token_bytes
    config = EngineConfig(str(stories260k), kv_memory_bytes=100 * 16 * EXACT_TOKEN_BYTES)
    limits = resolve_limits(config, stories_model.facts, 0)
    assert limits.num_pages == 100 * EXACT_TOKEN_BYTES // token_bytes
    core = EngineCore(stories_model, stories_tokenizer, limits, lambda: 0.0)
    assert core.info.kv_cache_dtype == kind
    assert core.info.num_pages == limits.num_pages


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="kv_cache_dtype is 'fp8'; allowed: auto, float32, ") as caught:
        EngineConfig("model", kv_cache_dtype="fp8")
    assert caught.value.param == "kv_cache_dtype"
