"""The first scheduler: applications in the order of their arrival, each call on the engine that holds the fewest.

Application order (Parrot, section 5.4: FIFO over applications, not over requests) keeps many applications at once from
slowing each other all alike. It knows no prefixes and no objectives.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kea.scheduler.base import CallKey, EngineLoad, Placement, QueuedCall


class FifoScheduler:
    """A heap by priority, then arrival of the application, then of the call."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, tuple[int, int], int, CallKey]] = []
        self._queued: dict[CallKey, int] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, call: QueuedCall) -> None:
        self._num_added += 1
        self._queued[call.key] = self._num_added
        heapq.heappush(self._heap, (call.priority, call.order, self._num_added, call.key))

    def remove(self, key: CallKey) -> None:
        """Forget a call. Its entry stays in the heap until it comes to the top, or until such entries are the most."""
        self._queued.pop(key, None)
        if len(self._heap) > 2 * len(self._queued) + 64:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def place(self, loads: Sequence[EngineLoad]) -> list[Placement]:
        placements: list[Placement] = []
        engines = [(load.is_doubtful, load.num_calls, load.engine_idx, load.max_calls) for load in loads]
        engines = [engine for engine in engines if engine[1] < engine[3]]
        heapq.heapify(engines)
        while self._heap and engines:
            entry = heapq.heappop(self._heap)
            if not self._is_live(entry):
                continue
            del self._queued[entry[3]]
            is_doubtful, num_calls, engine_idx, max_calls = engines[0]
            placements.append(Placement(entry[3], engine_idx))
            if num_calls + 1 < max_calls:
                heapq.heapreplace(engines, (is_doubtful, num_calls + 1, engine_idx, max_calls))
            else:
                heapq.heappop(engines)
        return placements

    def _is_live(self, entry: tuple[int, tuple[int, int], int, CallKey]) -> bool:
        return self._queued.get(entry[3]) == entry[2]
