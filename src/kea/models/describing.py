"""What a model is and what it would take, told from its config and the headers of its files: no weight is read.

Owns the estimates of memory that a server can make before it loads. Knows no requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kea.errors import InvalidRequest, ModelLoadFailed, Unsupported
from kea.models.base import KV_CACHE_DTYPES
from kea.models.limits import read_limits
from kea.models.source import FILES_HINT, read_config, resolve_source
from kea.models.support import check_config

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ROUNDED_KV_DTYPES = ("float16", "int8")
"""What our own decoder can round the KV of fp32 arithmetic to."""

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000


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
    return sum(map(_parameters_in, files)) if files else None


def weight_files(directory: Path) -> list[Path]:
    """Return the files that are loaded, as transformers chooses them; all of them where it would choose none."""
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelLoadFailed(f"{index} is not an index of safetensors: {error}.", hint=FILES_HINT) from error
    return [directory / name for name in sorted(names)]


def stored_shapes(directory: Path) -> dict[str, list[Any]]:
    """Return the type and the shape of each weight in a directory's safetensors files, by its name.

    Raises `ModelLoadFailed` where a file is of another format, or ends before its last value.
    """
    files = weight_files(directory)
    return {name: [dtype, list(shape)] for file in files for name, (dtype, shape) in _shapes_in(file).items()}


def _parameters_in(file: Path) -> int:
    return sum(_product(shape) for _, shape in _shapes_in(file).values())


def _shapes_in(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Read a file's header (format: 8 bytes of length, little-endian, the header in JSON, then the values)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            header = json.loads(stream.read(length)) if length <= MAX_HEADER_BYTES else None
        tensors = {key: value for key, value in (header or {}).items() if key != "__metadata__"}
        ends = (tensor["data_offsets"][1] for tensor in tensors.values())
        num_bytes = HEADER_LENGTH_BYTES + length + max(ends, default=0)
        found_bytes = file.stat().st_size
        shapes = {name: (str(tensor["dtype"]), list(map(int, tensor["shape"]))) for name, tensor in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelLoadFailed(f"{file} is not a safetensors file: {error}.", hint=FILES_HINT, param="model") from error
    if found_bytes < num_bytes:
        raise ModelLoadFailed(
            f"{file} is cut off: it has {found_bytes:,} of {num_bytes:,} bytes.", hint=FILES_HINT, param="model"
        )
    return shapes


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


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
