"""The order of eviction among the leaves of the prefix tree. Owns the queue; knows no pool, no contexts, no clock."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from kea.memory.nodes import Node

_MIN_STALE = 64
_Entry = tuple[int, int, int, Node]


class EvictionOrder:
    """Evictable nodes, the lowest `keep` rank first, then the least recently used. Lives as long as its tree.

    A heap whose outdated entries are skipped when they surface and swept out when they outnumber the valid ones: all
    operations are O(log n) amortised.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._num_stale = 0
        self._last_stamp = 0

    def __len__(self) -> int:
        return len(self._heap) - self._num_stale

    def add(self, node: Node) -> None:
        """Queue a node under its present rank and last use."""
        assert not node.stamp, f"page {node.page} is queued for eviction twice"
        self._last_stamp += 1
        node.stamp = self._last_stamp
        heappush(self._heap, (node.keep, node.last_used, node.stamp, node))

    def discard(self, node: Node) -> None:
        """Take a node out of the queue; nothing happens when it is not in it."""
        if not node.stamp:
            return
        node.stamp = 0
        self._num_stale += 1
        if self._num_stale > len(self) + _MIN_STALE:
            self._heap = [entry for entry in self._heap if _is_valid(entry)]
            heapify(self._heap)
            self._num_stale = 0

    def try_pop(self) -> Node | None:
        """Remove and return the node to evict next, or None."""
        while self._heap:
            entry = heappop(self._heap)
            if _is_valid(entry):
                node = entry[3]
                node.stamp = 0
                return node
            self._num_stale -= 1
        return None

    def check(self) -> None:
        """Prove that the queue's count and every valid entry agree with the nodes."""
        valid = [entry for entry in self._heap if _is_valid(entry)]
        assert len(valid) == len(self), f"{len(valid)} nodes are queued for eviction, counted {len(self)}"
        for keep, last_used, _, node in valid:
            assert (keep, last_used) == (node.keep, node.last_used), f"page {node.page} is queued under an old use"
            assert node.is_evictable, f"page {node.page} is queued for eviction but pinned or not a leaf"


def _is_valid(entry: _Entry) -> bool:
    return entry[3].stamp == entry[2]
