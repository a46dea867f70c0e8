"""The lean decoder on a GPU, here in Triton's interpreter: what transformers computes, for every family it covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kea.models import load_model
from kea.models.base import DecoderModel
from kea.models.hosted import HostedDecoder
from kea.models.rotary import Frequencies
from tests.models.families import save_model
from tests.models.lean.test_lean import COVERED, VARIANTS
from tests.models.paging import run_paged

pytest.importorskip("triton", reason="Triton is not installed")
from kea.models.lean.triton_decoder import TritonDecoder
from kea.models.lean.triton_steps import begin


def load(path: Path, dtype: str = "float32") -> TritonDecoder:
    decoder = load_model(path, backend="triton", dtype=dtype)
    assert isinstance(decoder, TritonDecoder)
    return decoder


def texts(decoder: DecoderModel, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(decoder.facts.vocab_size, (length,), generator=generator) for length in lengths]


def check_equal(path: Path) -> None:
    """Compare logits of chunks and of single rows with those of transformers' code over the same pages."""
    ours, theirs = load(path), load_model(path, backend="torch")
    assert isinstance(theirs, HostedDecoder)
    inputs = texts(ours, 7, 3)
    pairs = zip(*(run_paged(model, inputs, max_chunk=4) for model in (ours, theirs)), strict=True)
    for mine, expected in pairs:
        assert (mine - expected).abs().max() < 2e-5 * (1.0 + expected.abs().max())


@pytest.mark.parametrize("family", COVERED)
def test_a_family_gives_the_logits_of_transformers(family: str, family_path: Callable[[str], Path]) -> None:
    check_equal(family_path(family))


@pytest.mark.parametrize("variant", ["biases", "wide heads", "tanh", "multipliers"])
def test_options_of_the_config_equal_transformers(variant: str, tmp_path: Path) -> None:
    name, changes = VARIANTS[variant]
    check_equal(save_model(name, tmp_path, **changes))


def test_models_in_bfloat16_are_run(family_path: Callable[[str], Path]) -> None:
    ours, exact = load(family_path("qwen3"), "bfloat16"), load(family_path("qwen3"))
    assert {layer.keys.dtype for layer in ours.create_cache(4)} == {torch.bfloat16}
    inputs = texts(ours, 5)
    (mine,), (expected,) = (run_paged(model, inputs, max_chunk=4) for model in (ours, exact))
    assert mine.dtype == torch.float32
    assert (mine - expected).abs().max() < 0.05 * (1.0 + expected.abs().max())


def test_a_scale_of_embeddings_is_rounded_as_transformers_rounds_it(tmp_path: Path) -> None:
    path = save_model("gemma2", tmp_path, hidden_size=40)
    assert load(path, "bfloat16")._embedding_scale == 6.3125  # of the root, 6.3246
    assert load(path)._embedding_scale == pytest.approx(40**0.5, rel=1e-7)


def test_matrices_that_are_no_plain_ones_are_left_to_transformers(
    family_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised ones are modules of their own, with scales beside their weights."""

    class Quantised(torch.nn.Linear):
        pass

    from transformers.models.qwen2 import modeling_qwen2

    create = modeling_qwen2.Qwen2MLP.__init__

    def create_quantised(mlp: Any, config: object) -> None:
        create(mlp, config)
        mlp.down_proj = Quantised(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)

    monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "__init__", create_quantised)
    decoder = load_model(family_path("qwen2"), backend="triton")
    assert isinstance(decoder, HostedDecoder)


def test_phases_far_out_are_those_of_double_precision(family_path: Callable[[str], Path]) -> None:
    """Keys of one token at far positions differ by a rotation alone, formed in fp64: no row of a table, no fp32."""
    decoder = load(family_path("llama"))
    phases = decoder._weights.phases
    far = torch.tensor([0, 1, 3_999_999, 123_456_789])
    _, (cosines, sines) = begin(torch.zeros_like(far), far, decoder._weights.embedding, phases, 1.0)
    expected = far[:, None].double() * phases.turns * (2.0 * torch.pi)
    assert (cosines - expected.cos().float()).abs().max() < 1e-6
    assert (sines - expected.sin().float()).abs().max() < 1e-6


def test_the_models_own_matrices_are_views_of_the_fused_ones(family_path: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    from kea.models.lean import try_read_spec
    from kea.models.lean.triton_weights import fuse_in_place

    model = AutoModelForCausalLM.from_pretrained(family_path("qwen2"))
    with torch.inference_mode():
        expected = model(input_ids=torch.arange(9)[None]).logits
    spec = try_read_spec(model.config)
    assert spec is not None
    weights = fuse_in_place(model, spec, {None: Frequencies(torch.ones(4), 1.0, "halves")})
    attention = model.model.layers[1].self_attn
    fused = weights.layers[1].qkv
    assert attention.q_proj.weight.data_ptr() == fused.weight.data_ptr()
    assert attention.v_proj.weight.untyped_storage().data_ptr() == fused.weight.untyped_storage().data_ptr()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=torch.arange(9)[None]).logits, expected)
