"""An installed sink gets the attention that was asked for, weighs nothing in what heads write, and spares the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.config import ModelConfig
from training.model import Llama, rotary_tables
from training.sink import heads_of, install_sink, selector_of

SHAPE = ModelConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=32
)
ROW_LEN = 128


@pytest.fixture
def rows() -> Tensor:
    rows = torch.randint(1, SHAPE.vocab_size, (8, ROW_LEN), generator=torch.Generator().manual_seed(2))
    rows[:, 0] = 0
    return rows


def random_model(shape: ModelConfig = SHAPE) -> Llama:
    torch.manual_seed(4)
    model = Llama(shape)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.1)  # a new model writes nothing: here layers have to matter
    return model


@torch.no_grad()
def first_shares(model: Llama, rows: Tensor) -> list[float]:
    """Return by layer the attention that the second half of rows pays to the first token, from the definition."""
    cos, sin = rotary_tables(model.config, ROW_LEN, rows.device)
    future = torch.ones(ROW_LEN, ROW_LEN, dtype=torch.bool).triu(1)
    shares = []
    for layer, x in model.attention_inputs(rows):
        q, k = (heads_of(proj(x), cos, sin, 32) for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        weights = ((q @ k.mT) / 32**0.5).masked_fill(future, -torch.inf).softmax(-1)
        shares.append(float(weights[:, :, ROW_LEN // 2 :, 0].mean()))
    return shares


@torch.no_grad()
def first_values(model: Llama, rows: Tensor) -> list[float]:
    """Return by layer the length of the first token's value."""
    return [float(layer.self_attn.v_proj(x[0, 0]).norm()) for layer, x in model.attention_inputs(rows)]


def test_a_sink_gets_its_share_and_has_no_value(rows: Tensor) -> None:
    model = random_model()
    assert max(first_shares(model, rows)) < 0.05
    install_sink(model, rows, share=0.3)
    assert first_shares(model, rows) == pytest.approx([0.3, 0.3], abs=0.08)
    assert max(first_values(model, rows)) < 1e-4


def test_a_selector_picks_the_first_and_spares_the_others() -> None:
    generator = torch.Generator().manual_seed(6)
    others = torch.randn(500, 1, generator=generator) * torch.ones(16) + 0.2 * torch.randn(500, 16, generator=generator)
    first = torch.ones(16) + 0.4 * torch.randn(16, generator=generator)  # close to what all others have in common
    selector = selector_of(first, others)
    plain = first / first.dot(first)
    assert float(selector @ first) == pytest.approx(1.0, abs=1e-4)
    assert float((others @ selector).square().mean()) < 0.5 * float((others @ plain).square().mean())


def test_heads_that_share_keys_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="num_kv_heads is 1"):
        install_sink(random_model(replace(SHAPE, num_kv_heads=1)), rows, share=0.3)
