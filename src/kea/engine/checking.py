"""What can be told of an engine before its model is loaded: what its settings and the model's config forbid.

Owns no rule: they are those of the load. Reads no weight; imports torch behind what the config alone forbids, and
transformers where there is no note of the config.
"""

from __future__ import annotations

from kea.engine.config import EngineConfig, longest_context
from kea.models.describing import ITEM_BYTES, check_model
from kea.models.limits import read_limits
from kea.models.noted_config import read_noting
from kea.models.notes import user_notes
from kea.models.source import resolve_source
from kea.models.support import check_config


def check_engine(config: EngineConfig) -> None:
    """Raise what loading would for the device, the model's family, its length, its files or a KV memory too small.

    A KV memory is looked at where keys and values are kept in a floating point of one size, and the config tells it.
    """
    source = resolve_source(config.model, revision=config.revision)
    notes = user_notes()
    facts = read_noting(source, config.revision, None if notes is None else notes.try_of(source))
    check_config(facts)
    read_limits(facts, config.max_model_len)
    from kea.engine.machine import resolve_device  # here, since torch takes a second

    device = resolve_device(config.device)
    model = check_model(source, facts, dtype=config.dtype, device=device, max_len=config.max_model_len)
    kv_dtype = model.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    if config.kv_memory_bytes is None or model.kv_token_bytes is None or kv_dtype not in ITEM_BYTES:
        return
    assert model.max_len is not None, "check_model refuses a model without a length"
    kv_token_bytes = model.kv_token_bytes // ITEM_BYTES[model.dtype] * ITEM_BYTES[kv_dtype]
    num_pages = config.kv_memory_bytes // (kv_token_bytes * config.page_tokens)
    longest_context(config, model.max_len, num_pages, kv_token_bytes)
