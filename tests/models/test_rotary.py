"""Rotary phases in double precision: equal to the models' own at short positions, exact at long ones, pinned."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kea.errors import InvalidRequest, Unsupported
from kea.models import load_model
from kea.models.rotary import DoubleRotary, install_double_rotary
from tests.models.families import MAX_LEN, build_model, save_model
from tests.models.paging import run_paged

FAR = 1_000_000
THETA = {"rope_theta": 10000.0}
ORIGINAL_LEN = 48
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": ORIGINAL_LEN,
        **THETA,
    },
    "original_max_position_embeddings": ORIGINAL_LEN,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **THETA}}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **THETA}},
    "dynamic": DYNAMIC,
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **THETA}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            **THETA,
        }
    },
}
ROTARY_FAMILIES = ("llama", "cohere2", "gpt_oss", "gpt_neox", "phi3", "glm4", "gemma3")


def rotary_of(model: Any) -> Any:
    return model.base_model.rotary_emb


def cos_sin(rotary: Any, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    kind = getattr(rotary, "rope_type", "default")
    keywords = {"layer_type": "sliding_attention"} if isinstance(kind, dict) else {}
    result: tuple[torch.Tensor, torch.Tensor] = rotary(torch.zeros(1), torch.tensor([positions]), **keywords)
    return result


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in ROTARY_FAMILIES), *(("llama", changes) for changes in SCALINGS.values())],
    ids=[*ROTARY_FAMILIES, *SCALINGS],
)
def test_short_positions_equal_the_models_own(name: str, changes: dict[str, Any]) -> None:
    rotary = rotary_of(model := build_model(name, **changes))
    positions = list(range(MAX_LEN))
    expected = cos_sin(rotary, positions)
    assert install_double_rotary(model) == 1
    assert isinstance(rotary.forward, DoubleRotary)
    for ours, theirs in zip(cos_sin(rotary, positions), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def test_far_positions_are_exact_where_single_precision_is_not() -> None:
    rotary = rotary_of(model := build_model("llama", head_dim=64))
    frequencies = [float(value) for value in rotary.inv_freq]
    exact = torch.tensor([math.cos(math.fmod(FAR * value, 2 * math.pi)) for value in frequencies])
    size = len(frequencies)
    assert (cos_sin(rotary, [FAR])[0][0, 0, :size] - exact).abs().max() > 1e-2
    install_double_rotary(model)
    assert (cos_sin(rotary, [FAR])[0][0, 0, :size] - exact).abs().max() < 1e-6


def test_the_result_has_the_dtype_of_the_model() -> None:
    rotary = rotary_of(model := build_model("llama"))
    install_double_rotary(model)
    cos, sin = rotary(torch.zeros(1, dtype=torch.bfloat16), torch.tensor([[0, 1]]))
    assert cos.dtype == sin.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "changes"), [("llama", DYNAMIC), ("phi3", LONGROPE)])
def test_a_row_does_not_depend_on_the_length_of_its_neighbours(name: str, changes: dict[str, Any]) -> None:
    rotary = rotary_of(model := build_model(name, **changes))
    alone = cos_sin(rotary, [9])[0][0, 0]
    assert not torch.allclose(cos_sin(rotary, [9, 10 * MAX_LEN])[0][0, 0], alone, atol=1e-3)  # the model's own does
    install_double_rotary(model)
    assert torch.allclose(cos_sin(rotary, [9, 10 * MAX_LEN])[0][0, 0], alone, atol=1e-6)


def expected_logits(path: Path, text: torch.Tensor) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=text[None], use_cache=False).logits[0]
    return logits


def test_longrope_serves_the_original_length_with_its_short_factors(tmp_path: Path) -> None:
    path = save_model("phi3", tmp_path, **LONGROPE)
    model = load_model(path)
    assert model.facts.max_len == ORIGINAL_LEN
    text = torch.arange(ORIGINAL_LEN) % 100 + 5
    logits = run_paged(model, [text], max_chunk=20)[0]
    assert (logits - expected_logits(path, text)).abs().max() < 1e-4


def test_longrope_serves_more_with_its_long_factors_where_asked_for(tmp_path: Path) -> None:
    path = save_model("phi3", tmp_path, **LONGROPE)
    model = load_model(path, max_len=MAX_LEN)
    assert model.facts.max_len == MAX_LEN
    text = torch.arange(2 * ORIGINAL_LEN) % 100 + 5
    logits = run_paged(model, [text], max_chunk=20)[0]
    assert (logits - expected_logits(path, text)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "allowed"), [({}, MAX_LEN), (DYNAMIC, MAX_LEN), (SCALINGS["yarn"], 4 * 64), (LONGROPE, MAX_LEN)]
)
def test_max_len_is_bounded_by_the_model(changes: dict[str, Any], allowed: int, tmp_path: Path) -> None:
    path = save_model("phi3" if changes is LONGROPE else "llama", tmp_path, **changes)
    assert load_model(path, max_len=allowed).facts.max_len == allowed
    with pytest.raises(
        InvalidRequest, match=f"max_model_len is {allowed + 1}; it must be at least 1 and at most {allowed}"
    ):
        load_model(path, max_len=allowed + 1)


def test_a_rotary_of_another_kind_is_left_alone_with_a_warning(
    family_path: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    load_model(family_path("deepseek_v2"))
    assert "not a standard rotary" in caplog.text


def test_an_unknown_rotary_that_changes_with_the_length_is_refused() -> None:
    rotary = rotary_of(model := build_model("llama", **DYNAMIC))
    own = rotary.forward
    rotary.forward = lambda *args, **kwargs: tuple(2 * part for part in own(*args, **kwargs))
    with pytest.raises(Unsupported, match="which requests run together"):
        install_double_rotary(model)
