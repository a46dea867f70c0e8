"""What this engine refuses to load, told from the config alone, before any weight is read. Owns the reasons.

What cannot be told from the config is found by `probe`. Knows no weights, no requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kea.errors import Unsupported

PLAIN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
STATE_LAYER_TYPES = frozenset({"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding", "recurrent", "moe"})
ALIBI_TYPES = frozenset({"bloom", "mpt"})
STATE_TYPES = frozenset(
    {
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "mamba",
        "mamba2",
        "nemotron_h",
        "recurrent_gemma",
        "rwkv",
        "xlstm",
        "zamba",
        "zamba2",
    }
)
OTHER_INPUTS = {"vision_config": "images", "audio_config": "audio", "speech_config": "audio"}


def check_config(config: Any) -> None:
    """Raise `Unsupported` with the reason where a model of this config could not be run exactly."""
    reason = next(iter(_reasons(config)), None)
    if reason is not None:
        raise Unsupported(
            f"Models of type {config.model_type} cannot be served: {reason}.",
            hint="Any decoder-only text model whose layers are softmax attention over all tokens or a window works.",
            param="model",
        )


def _reasons(config: Any) -> Iterable[str]:
    if getattr(config, "is_encoder_decoder", False):
        yield "it is an encoder-decoder, this engine runs decoder-only models"
    for name, what in OTHER_INPUTS.items():
        if getattr(config, name, None) is not None:
            yield f"it also reads {what} ({name}), this engine reads text only"
    if config.model_type in ALIBI_TYPES or getattr(config, "alibi", False):
        yield "it adds ALiBi biases inside its own attention code, which has no place for another attention"
    if config.model_type in STATE_TYPES:
        yield "it keeps a recurrent state, which pages of KV do not hold"
    yield from _layer_reasons(getattr(config, "layer_types", None) or ())


def _layer_reasons(layer_types: Iterable[str]) -> Iterable[str]:
    unknown = sorted(set(layer_types) - PLAIN_LAYER_TYPES)
    states = [name for name in unknown if name in STATE_LAYER_TYPES]
    if states:
        yield f"its layers of type {', '.join(states)} keep a recurrent state, which pages of KV do not hold"
    elif unknown:
        yield f"its layers of type {', '.join(unknown)} see other keys than all earlier ones or a window of them"


def check_class(model_class: Any, model_type: str) -> None:
    """Raise `Unsupported` where transformers' code of this model calls its own attention, not a registered one."""
    if not model_class._can_set_attn_implementation():
        raise Unsupported(
            f"Models of type {model_type} cannot be served: transformers' {model_class.__name__} computes its "
            "attention in its own code (as ALiBi families do), not through a registered attention function.",
            hint="Any decoder-only text model that goes through transformers' AttentionInterface works.",
            param="model",
        )
