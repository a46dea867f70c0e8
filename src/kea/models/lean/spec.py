"""Which models the lean decoder covers, and what they are to it: families as data, read from a transformers config.

Owns the table of families. A config with an option that the table does not know of is not covered; it then runs
through transformers' own code. Knows no weights, no kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Activation = Literal["silu", "gelu_tanh"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Norms:
    """The names of a layer's norms by their place; None where there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


SANDWICH = Norms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
AFTER = Norms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)


@dataclass(frozen=True, slots=True)
class Family:
    """What the code of a family fixes, which its configs therefore do not say.

    `unit_offset`: norms multiply by 1 + weight. `centred`: norms are LayerNorm. `pairs`: rotary turns neighbours, not
    halves. `unless`: config options with the only value under which this table is right.
    """

    norms: Norms = field(default_factory=Norms)
    unit_offset: bool = False
    centred: bool = False
    pairs: bool = False
    scales_embedding: bool = False
    unless: Mapping[str, object] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "phi3": Family(),
    "gemma2": Family(SANDWICH, unit_offset=True, scales_embedding=True),
    "gemma3_text": Family(
        SANDWICH, unit_offset=True, scales_embedding=True, unless={"use_bidirectional_attention": False}
    ),
    "olmo2": Family(AFTER),
    "olmo3": Family(AFTER),
    "glm4": Family(Norms(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"), pairs=True),
    "stablelm": Family(centred=True, unless={"use_parallel_residual": False, "qk_layernorm": False}),
}


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A covered model. `layer_types`: which rotary frequencies each layer uses; `rotates`: whether it uses any."""

    family: Family
    hidden_size: int
    intermediate_size: int
    activation: Activation
    norm_eps: float
    layer_types: tuple[str | None, ...]
    rotates: tuple[bool, ...]
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None


def try_read_spec(config: Any) -> DecoderSpec | None:
    """Return the spec of a text config, or None where the lean decoder does not cover it."""
    family = FAMILIES.get(config.model_type)
    activation = ACTIVATIONS.get(str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "")))
    if family is None or activation is None:
        return None
    if any(getattr(config, name, value) != value for name, value in family.unless.items()):
        return None
    count = int(config.num_hidden_layers)
    return DecoderSpec(
        family=family,
        hidden_size=int(config.hidden_size),
        intermediate_size=int(config.intermediate_size),
        activation=activation,
        norm_eps=float(config.layer_norm_eps if family.centred else config.rms_norm_eps),
        layer_types=tuple(getattr(config, "layer_types", None) or (None,) * count),
        rotates=tuple(map(bool, getattr(config, "no_rope_layers", None) or (1,) * count)),
        embedding_scale=_embedding_scale(config, family),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        logit_scale=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )


def _embedding_scale(config: Any, family: Family) -> float:
    if family.scales_embedding:
        return math.sqrt(config.hidden_size)
    return float(getattr(config, "embedding_multiplier", 1.0))
