"""KV memory: pages, the prefix tree, contexts' residency, eviction. Never imports torch, reads a clock or does I/O."""

from kea.memory.base import NO_PAGE, MatchResult, MemoryConfig, MemorySnapshot, PageCopy, Salt
from kea.memory.contexts import ContextPages
from kea.memory.kv import KVMemory

__all__ = [
    "NO_PAGE",
    "ContextPages",
    "KVMemory",
    "MatchResult",
    "MemoryConfig",
    "MemorySnapshot",
    "PageCopy",
    "Salt",
]
