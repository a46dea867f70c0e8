"""Transformers' own models with keys and values rounded as Kea keeps them: the oracle of `kv_cache_dtype`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from kea.attention.storage import pack, unpack


def round_kv(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Let the attention of a Llama see its keys, after rotary, and values as a cache of this type holds them."""

    def attend(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = (unpack(pack(part, dtype)).to(part.dtype) for part in (key, value))
        result: tuple[torch.Tensor, torch.Tensor] = eager_attention_forward(module, query, key, value, *rest, **kwargs)
        return result

    name = f"rounded_{dtype}".replace(".", "_")
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)
    model.set_attn_implementation(name)
    return model
