"""What a model is and what it would take, told from its config and the headers of its files: no weight is read.

Owns the estimates of memory that a server can make before it loads. Knows no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kea.errors import InvalidRequest, Unsupported
from kea.models.base import KV_CACHE_DTYPES
from kea.models.limits import read_limits
from kea.models.source import read_config, resolve_source
from kea.models.stored import read_header, weight_files
from kea.models.support import check_config

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ROUNDED_KV_DTYPES = ("float16", "int8")
"""What our own decoder can round the KV of fp32 arithmetic to."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model before it is loaded. Sizes are for `dtype`; None where only loading tells.

    `refusal` is the reason why it cannot be served, as far as its config shows.
    """

    name: str
    family: str
    dtype: str
    num_layers: int
    vocab_size: int
    max_len: int | None
    num_parameters: int | None
    weights_bytes: int | None
    kv_token_bytes: int | None
    refusal: str | None


def describe_model(
    name_or_path: str | Path, *, dtype: str = "auto", device: str = "cpu", revision: str | None = None
) -> ModelDescription:
    """Describe a directory or hub id as `load_model` with the same arguments would load it.

    Of a hub id only the config is fetched. Raises `ModelLoadFailed` where there is no readable config.
    """
    source = resolve_source(name_or_path, revision=revision)
    config = read_config(source, revision)
    description = describe_config(source, config, resolve_dtype(dtype, device, config))
    return replace(description, name=model_name(str(name_or_path)), refusal=_refusal(config))


def check_model(source: str, config: Any, *, dtype: str, device: str, max_len: int | None) -> ModelDescription:
    """Describe a model that `load_model` with the same arguments would not refuse by its config or its files' headers.

    Raises `Unsupported` and `ModelLoadFailed` as that, and `InvalidRequest` where `max_len` is too long for the model.
    `max_len` of the description is the one that would hold.
    """
    check_config(config)
    limits = read_limits(config, max_len)
    description = describe_config(source, config, resolve_dtype(dtype, device, config))
    return replace(description, max_len=limits.max_len)


def describe_config(source: str, config: Any, arithmetic: str) -> ModelDescription:
    """Describe a directory or hub id by its config, as it stands, in an arithmetic."""
    text = config.get_text_config()
    num_parameters = _stored_parameters(Path(source))
    kv_values = _kv_values(text)
    return ModelDescription(
        name=source,
        family=str(config.model_type),
        dtype=arithmetic,
        num_layers=int(text.num_hidden_layers),
        vocab_size=int(text.vocab_size),
        max_len=_max_len(config),
        num_parameters=num_parameters,
        weights_bytes=None if num_parameters is None else num_parameters * ITEM_BYTES[arithmetic],
        kv_token_bytes=None if kv_values is None else kv_values * ITEM_BYTES[arithmetic],
        refusal=None,
    )


def model_name(source: str) -> str:
    """Return the name under which a model is served: the directory's own, or the hub id."""
    path = Path(source)
    return path.resolve().name if path.is_dir() else source


def resolve_dtype(dtype: str, device: str, config: Any) -> str:
    """Return the arithmetic that `dtype` means: auto is fp32 on a CPU and the checkpoint's own elsewhere."""
    if dtype in ITEM_BYTES:
        return dtype
    if dtype != "auto":
        raise InvalidRequest(f"dtype is {dtype!r}; it must be one of auto, {', '.join(ITEM_BYTES)}.", param="dtype")
    stored = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    return stored if device != "cpu" and stored in ITEM_BYTES else "float32"


def resolve_kv_dtype(kv_cache_dtype: str, dtype: str, *, may_be_lean: bool) -> str:
    """Return how KV are kept: auto is as the arithmetic has them. `may_be_lean`: our own decoder may run the model."""
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise InvalidRequest(
            f"kv_cache_dtype is {kv_cache_dtype!r}; it must be one of {', '.join(KV_CACHE_DTYPES)}.",
            param="kv_cache_dtype",
        )
    if kv_cache_dtype in {"auto", dtype}:
        return dtype
    if may_be_lean and kv_cache_dtype in ROUNDED_KV_DTYPES:
        return kv_cache_dtype
    allowed = ("auto", dtype, *(ROUNDED_KV_DTYPES if may_be_lean else ()))
    raise Unsupported(
        f"kv_cache_dtype is {kv_cache_dtype!r}; with this device, backend and the arithmetic {dtype} it must be one of "
        f"{', '.join(allowed)}.",
        hint="Kea's own decoder alone rounds keys and values: on a CPU, in float32, with the backend auto.",
        param="kv_cache_dtype",
    )


def _max_len(config: Any) -> int | None:
    try:
        return read_limits(config, None).max_len
    except InvalidRequest:
        return None


def _refusal(config: Any) -> str | None:
    try:
        check_config(config)
    except Unsupported as error:
        return error.message
    return None


def _stored_parameters(directory: Path) -> int | None:
    """Count the values in a directory's safetensors files by their headers; None where there are none."""
    files = weight_files(directory) if directory.is_dir() else []
    return sum(math.prod(weight.shape) for file in files for weight in read_header(file).values()) if files else None


def _kv_values(config: Any) -> int | None:
    """Return how many values one token's keys and values are, over all layers; None where the config does not tell."""
    layers = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    try:
        return sum(_layer_kv_values(layers[index]) for index in range(config.num_hidden_layers))
    except (AttributeError, KeyError, TypeError):
        return None


def _layer_kv_values(config: Any) -> int:
    num_heads = int(config.num_attention_heads)
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention, whose attention gets plain heads
        return num_heads * int(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return 2 * int(getattr(config, "num_key_value_heads", None) or num_heads) * int(head_dim)
