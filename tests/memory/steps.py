"""What a batcher does in a step, for tests that look at one operation."""

from __future__ import annotations

from collections.abc import Sequence

from kea.memory import ContextPages, KVMemory, MemoryConfig, Salt


def create_memory(num_pages: int = 16, page_tokens: int = 4) -> KVMemory:
    return KVMemory(MemoryConfig(num_pages, page_tokens))


def compute(memory: KVMemory, ctx: ContextPages, tokens: Sequence[int], stop: int | None = None) -> None:
    """Compute the positions from `num_computed` to `stop` in as few chunks as drops allow."""
    stop = len(tokens) if stop is None else stop
    while ctx.num_computed < stop:
        chunk_stop = memory.chunk_stop(ctx, stop)
        assert memory.try_reserve(ctx, chunk_stop)
        memory.commit(ctx, tokens, chunk_stop)
        memory.check()


def open_computed(memory: KVMemory, tokens: Sequence[int], salt: Salt = "") -> ContextPages:
    ctx = memory.open(salt)
    compute(memory, ctx, tokens)
    return ctx


def cache(memory: KVMemory, tokens: Sequence[int], salt: Salt = "") -> None:
    """Leave the full pages of `tokens` in the prefix tree, used by nobody."""
    memory.free(open_computed(memory, tokens, salt))
    memory.check()
