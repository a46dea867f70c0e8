"""The engine over a checkpoint in fp16, which stays so: the exactness suite, against transformers with it in fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kea.models import DecoderModel, load_model
from kea.models.lean import LeanDecoder
from tests.engine import test_exactness

# Collected here too: with the models of this module.
test_mixed_batch = test_exactness.test_mixed_batch_equals_each_request_alone
test_greedy_output = test_exactness.test_greedy_output_is_what_transformers_generates
test_preempted_requests = test_exactness.test_preempted_requests_are_recomputed_exactly


@pytest.fixture(scope="module")
def fp16_stories(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "model"
    shutil.copytree(stories260k, path, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stories_model(fp16_stories: Path) -> DecoderModel:
    model = load_model(fp16_stories)
    assert isinstance(model, LeanDecoder)
    assert model.weight_dtypes == {"float16"}
    return model


@pytest.fixture(scope="module")
def stories_reference(fp16_stories: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        fp16_stories, dtype=torch.float32, attn_implementation="eager"
    )
    return model
