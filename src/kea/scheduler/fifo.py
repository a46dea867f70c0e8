"""The first scheduler: tenants in turn, the applications of each in the order of their arrival, each call on the engine
that holds the fewest.

Application order (Parrot, section 5.4: FIFO over applications, not over requests) keeps many applications at once from
slowing each other all alike. Between tenants it would let the first fill every place, so these take turns by calls:
start-time fair queueing (Goyal et al., SIGCOMM '96) with calls of length 1. A tenant's next call is due one turn after
its last one, and one that returns after a pause is due now, not for what it left unused. It knows no prefixes and no
objectives; tokens are shared out in the engine's queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kea.scheduler.base import CallKey, EngineLoad, Placement, QueuedCall

Entry = tuple[int, int, int, CallKey]
"""A call in its tenant's lane: its order (application, number), when it was added, its key."""


class FifoScheduler:
    """Priorities, within each the tenants in turn, within each a heap by application and call.

    Adding or placing a call costs the logarithms of the numbers of priorities, tenants and calls.
    """

    def __init__(self) -> None:
        self._levels: dict[int, Level] = {}
        self._priorities: list[int] = []
        self._queued: dict[CallKey, int] = {}
        self._num_removed = 0
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, call: QueuedCall) -> None:
        self._num_added += 1
        self._queued[call.key] = self._num_added
        level = self._levels.get(call.priority)
        if level is None:
            level = self._levels[call.priority] = Level()
            heapq.heappush(self._priorities, call.priority)
        level.push(call.tenant, (*call.order, self._num_added, call.key))

    def remove(self, key: CallKey) -> None:
        """Forget a call. Its entry stays in its lane until it comes to the top, or until such entries are the most."""
        self._num_removed += self._queued.pop(key, None) is not None
        if self._num_removed > len(self._queued) + 64:
            self._num_removed = 0
            for level in self._levels.values():
                level.sweep(self._queued)

    def place(self, loads: Sequence[EngineLoad]) -> list[Placement]:
        placements: list[Placement] = []
        engines = [(load.is_doubtful, load.num_calls, load.engine_idx, load.max_calls) for load in loads]
        engines = [engine for engine in engines if engine[1] < engine[3]]
        heapq.heapify(engines)
        while engines and self._priorities:
            key = self._levels[self._priorities[0]].try_take(self._queued)
            if key is None:
                del self._levels[heapq.heappop(self._priorities)]
                continue
            is_doubtful, num_calls, engine_idx, max_calls = engines[0]
            placements.append(Placement(key, engine_idx))
            if num_calls + 1 < max_calls:
                heapq.heapreplace(engines, (is_doubtful, num_calls + 1, engine_idx, max_calls))
            else:
                heapq.heappop(engines)
        return placements


class Level:
    """The calls of one priority, by tenant. Lives until it is asked for a call and has none: then nobody has to wait,
    and who was served before is forgotten.
    """

    __slots__ = ("_due", "_lanes", "_now", "_turns")

    def __init__(self) -> None:
        self._lanes: dict[str, list[Entry]] = {}
        self._turns: list[tuple[int, Entry, str]] = []  # a heap: when each lane's next call is due
        self._due: dict[str, int] = {}
        self._now = 0  # when the call that was taken last was due

    def push(self, tenant: str, entry: Entry) -> None:
        lane = self._lanes.get(tenant)
        if lane is not None:
            heapq.heappush(lane, entry)
            return
        self._lanes[tenant] = [entry]
        due = self._due[tenant] = max(self._due.get(tenant, 0), self._now)
        heapq.heappush(self._turns, (due, entry, tenant))

    def try_take(self, queued: dict[CallKey, int]) -> CallKey | None:
        """Take the next call that is queued out of the level and of `queued`; None where there is none."""
        while self._turns:
            due, _, tenant = self._turns[0]
            lane = self._lanes[tenant]
            _, _, number, key = heapq.heappop(lane)
            is_live = queued.get(key) == number
            if is_live:
                del queued[key]
                self._now = due
                due = self._due[tenant] = due + 1
            if lane:
                heapq.heapreplace(self._turns, (due, lane[0], tenant))
            else:
                heapq.heappop(self._turns)
                del self._lanes[tenant]
            if is_live:
                return key
        return None

    def sweep(self, queued: dict[CallKey, int]) -> None:
        """Drop the entries of calls that are not queued any more."""
        for tenant, lane in list(self._lanes.items()):
            lane[:] = [entry for entry in lane if queued.get(entry[3]) == entry[2]]
            heapq.heapify(lane)
            if not lane:
                del self._lanes[tenant]
        self._turns = [turn for turn in self._turns if turn[2] in self._lanes]
        heapq.heapify(self._turns)
