"""Tiny random models of many families, built from transformers' own configs: small enough to load by the dozen.

`FAMILIES` maps a name to the config class and what differs from the common shape. Weights are random and larger than
transformers initialises them, so that attention is far from uniform and an error in it shows in the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 160
MAX_LEN = 256

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 11}
ALTERNATING = {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EQUAL_HEADS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2}
GEMMA = {**ALTERNATING, "head_dim": 8, "query_pre_attn_scalar": 16}
MLA = {
    **EQUAL_HEADS,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    **EXPERTS,
}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    }
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", WINDOW),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, **ALTERNATING}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "phi3": ("Phi3Config", {**WINDOW, "partial_rotary_factor": 0.5}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "gpt_neox": ("GPTNeoXConfig", {**EQUAL_HEADS, "rotary_pct": 0.25, "hidden_size": 64}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_oss": (
        "GptOssConfig",
        {**ALTERNATING, **EXPERTS, **YARN, "head_dim": 8, "num_local_experts": 4},
    ),
    "cohere2": ("Cohere2Config", ALTERNATING),
    "glm4": ("Glm4Config", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "granite": ("GraniteConfig", {"logits_scaling": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "gpt2": ("GPT2Config", EQUAL_HEADS),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "mixtral": ("MixtralConfig", {**EXPERTS, "num_local_experts": 4}),
    "deepseek_v3": ("DeepseekV3Config", MLA),
    "deepseek_v2": ("DeepseekV2Config", {**MLA, "topk_method": "greedy"}),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **WINDOW,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "head_dim": 8,
            "global_head_dim": 16,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "granite_swa": ("GraniteSWAConfig", {**ALTERNATING, "layer_rope_theta": [10000.0, 0.0, 500.0]}),
    "olmo3": ("Olmo3Config", ALTERNATING),
    "starcoder2": ("Starcoder2Config", WINDOW),
    "opt": ("OPTConfig", {**EQUAL_HEADS, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def build_model(name: str, **changes: Any) -> Any:
    """Return the tiny model of a family in fp32, its weights fixed by the name; `changes` override its config."""
    import transformers

    class_name, differences = FAMILIES[name]
    config = getattr(transformers, class_name)(**{**COMMON, **differences, **changes})
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.6 / parameter.shape[-1] ** 0.5 if "embed" not in key else 0.8)
            elif "sinks" in key:
                parameter.normal_(0.0, 1.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_model(name: str, directory: Path, **changes: Any) -> Path:
    """Write the tiny model of a family to a directory as safetensors and return it."""
    from transformers.utils import logging

    path = directory / name
    logging.disable_progress_bar()
    build_model(name, **changes).save_pretrained(path)
    return path
