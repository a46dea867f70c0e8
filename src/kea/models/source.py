"""Where a model comes from: a directory, or an id of the Hugging Face hub. Owns the reading of configs, its errors.

Only safetensors are read, and no code from a checkpoint runs. Imports transformers where used. Knows no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kea.errors import InvalidRequest, KeaError, ModelLoadFailed
from kea.models.hub import locate
from kea.types import Sampling

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HINT = "Give a directory with a config.json, or the id of a Hugging Face model that this machine can reach."
FILES_HINT = "The file may be damaged or incomplete: copy or download it again."

CONFIG_FILES = ("config.json",)
GENERATION_FILES = ("generation_config.json",)
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def check_source(name_or_path: str | Path, any_of: Sequence[str] = CONFIG_FILES) -> str:
    """Return the directory (which holds `any_of` these files), or the hub id, that is named; asks no hub.

    Raises `ModelLoadFailed` where it is neither such a directory nor shaped like a hub id.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in any_of):
            raise ModelLoadFailed(f"The directory {text} has no {' or '.join(any_of)}.", hint=HINT, param="model")
        return str(path)
    if path.exists():
        raise ModelLoadFailed(f"{text} is a file; a model is a directory.", hint=HINT, param="model")
    if text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(text):
        raise ModelLoadFailed(f"There is no model directory {text}.", hint=HINT, param="model")
    return text


def resolve_source(
    name_or_path: str | Path, any_of: Sequence[str] = CONFIG_FILES, *, revision: str | None = None
) -> str:
    """Return the directory or hub id that transformers is to load from; for an id that the hub cannot be asked for, the
    directory of its copy in the cache.

    Raises `ModelLoadFailed` as `check_source` does, and where neither a hub nor the cache can be asked for the id.
    """
    source = check_source(name_or_path, any_of)
    return source if Path(source).is_dir() else locate(source, revision)


@contextmanager
def failing_as_load_error(source: str, what: str, hint: str | None = HINT) -> Iterator[None]:
    """Turn what transformers and the hub raise while `what` is read into one sentence of `ModelLoadFailed`."""
    try:
        yield
    except KeaError:
        raise
    except MemoryError as error:
        raise ModelLoadFailed(f"There is not enough memory for {what} of {source}.", param="model") from error
    except Exception as error:  # whatever a third-party loader raises becomes our typed error
        detail = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ModelLoadFailed(f"Could not read {what} of {source}: {detail}.", hint=hint, param="model") from error


def read_config(source: str, revision: str | None = None) -> Any:
    """Return the transformers config of `source` (a directory or hub id, see `resolve_source`)."""
    with failing_as_load_error(source, "the config"):
        import torch
        from transformers import AutoConfig, PretrainedConfig

        facts, _ = PretrainedConfig.get_config_dict(source, revision=revision)
        for key in ("dtype", "torch_dtype"):  # transformers takes it for an attribute of torch's
            name = facts.get(key)
            if isinstance(name, str) and not isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype):
                raise ModelLoadFailed(
                    f"config.json of {source}: {key} is {name!r}; it must be a type of torch's, such as float32, "
                    "bfloat16 or float16.",
                    param="model",
                )
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def try_read_generation_config(source: str, revision: str | None = None) -> Any | None:
    """Return the generation config of `source`, or None where it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return None


def read_default_sampling(
    name_or_path: str | Path, any_of: Sequence[str] = CONFIG_FILES, *, revision: str | None = None
) -> Sampling:
    """Return the sampling that a model's generation_config.json recommends; what it does not name is neutral.

    Its `do_sample` has no say, as in vLLM. Raises `ModelLoadFailed` where a value is none that can be used.
    """
    source = resolve_source(name_or_path, any_of, revision=revision)
    with failing_as_load_error(source, "the generation config", None):
        config = try_read_generation_config(source, revision)
        given = {} if config is None else config.to_diff_dict()
    chosen = {name: given[name] for name in SAMPLING_KEYS if given.get(name) is not None}
    try:
        return Sampling(**chosen)
    except (InvalidRequest, TypeError) as error:
        raise ModelLoadFailed(
            f"generation_config.json of {source} is unusable: {error}",
            hint="Correct it, or serve without it: --generation-config none.",
            param="generation_config",
        ) from error


def eos_ids(config: Any) -> tuple[int, ...]:
    """Return the end-of-sequence token ids that a config names, in its order; empty where it names none."""
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
