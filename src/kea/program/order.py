"""A topological order kept while nodes are inserted, and the cycle that an insertion would close. Knows no calls.

Every node has a key; an edge goes from a smaller to a larger key. A node comes with its edges: if its predecessors lie
before its successors (nearly always: programs are submitted in order, or exactly backward) its key is found at once.
Else only the nodes between the two are searched and reordered, as in Pearce and Kelly, "A dynamic topological sort
algorithm for directed acyclic graphs" (JEA 11, 2006), where single edges are inserted instead of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

GAP = 1 << 64

Key = tuple[int, int]
Neighbours = Callable[[str], Iterable[str]]


class CycleFound(Exception):
    """The insertion would close a cycle through `node`."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


class TopologicalOrder:
    """Keys of nodes: a position, and a running number that parts equal positions.

    `successors` and `predecessors` tell the edges between nodes that are already in the order.
    """

    def __init__(self, successors: Neighbours, predecessors: Neighbours) -> None:
        self._successors = successors
        self._predecessors = predecessors
        self._keys: dict[str, Key] = {}
        self._num_inserted = 0
        self._first = 0
        self._last = 0

    def __contains__(self, node: str) -> bool:
        return node in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def sorted(self, nodes: Iterable[str] | None = None) -> list[str]:
        """Return these nodes (all when None), each behind its predecessors."""
        return sorted(self._keys if nodes is None else nodes, key=self._keys.__getitem__)

    def insert(self, node: str, predecessors: Iterable[str], successors: Iterable[str]) -> None:
        """Add a node between neighbours that are in the order. Raises `CycleFound`, and then changes nothing."""
        before, after = set(predecessors), set(successors)
        if before and after:
            if self._last_of(before) >= self._first_of(after):
                self._make_way(node, before, after)
            position = self._position_between(before, after)
        else:
            position = self._end_position(is_front=bool(after))
        self._num_inserted += 1
        self._keys[node] = (position, self._num_inserted)

    def remove(self, node: str) -> None:
        del self._keys[node]

    def _last_of(self, nodes: Iterable[str]) -> Key:
        return max(self._keys[node] for node in nodes)

    def _first_of(self, nodes: Iterable[str]) -> Key:
        return min(self._keys[node] for node in nodes)

    def _end_position(self, *, is_front: bool) -> int:
        if is_front:
            self._first -= GAP
            return self._first
        self._last += GAP
        return self._last

    def _position_between(self, before: set[str], after: set[str]) -> int:
        if self._first_of(after)[0] - self._last_of(before)[0] < 2:
            self._renumber()
        return (self._last_of(before)[0] + self._first_of(after)[0]) // 2

    def _renumber(self) -> None:
        nodes = self.sorted()
        self._keys = {node: ((idx + 1) * GAP, idx) for idx, node in enumerate(nodes)}
        self._first, self._last = 0, len(nodes) * GAP

    def _make_way(self, node: str, before: set[str], after: set[str]) -> None:
        """Reorder so that all of `before` lies in front of all of `after`."""
        low, high = self._last_of(before), self._first_of(after)
        later = self._reach(after, self._successors, lambda key: key <= low)
        if later & before:
            raise CycleFound(node)
        earlier = self._reach(before, self._predecessors, lambda key: key >= high)
        moved = sorted(earlier, key=self._keys.__getitem__) + sorted(later, key=self._keys.__getitem__)
        keys = sorted(self._keys[item] for item in moved)
        self._keys.update(zip(moved, keys, strict=True))

    def _reach(self, start: Iterable[str], neighbours: Neighbours, is_inside: Callable[[Key], bool]) -> set[str]:
        found = {node for node in start if is_inside(self._keys[node])}
        pending = list(found)
        while pending:
            for node in neighbours(pending.pop()):
                if node not in found and node in self._keys and is_inside(self._keys[node]):
                    found.add(node)
                    pending.append(node)
        return found
