"""The tool that tells what rounding costs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kea.models import load_model
from tests.models.families import build_model, save_model
from tools.quality import ROUNDINGS, perplexity


def test_perplexity_is_that_of_transformers_and_rounding_changes_it_a_little(tmp_path: Path) -> None:
    path = save_model("llama", tmp_path)
    rows = torch.randint(3, 90, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = build_model("llama")(input_ids=rows, use_cache=False).logits[:, :-1]
    expected = math.exp(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())))
    assert perplexity(load_model(path), rows.tolist()) == pytest.approx(expected, rel=1e-4)
    for name, options in ROUNDINGS.items():
        rounded = perplexity(load_model(path, **options), rows.tolist())
        assert rounded != expected, name
        assert rounded == pytest.approx(expected, rel=0.05), name
