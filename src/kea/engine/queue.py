"""The queue of contexts that wait for a place in the batch. Knows order and fairness, no memory, no clocks.

Order: priority first (smaller is earlier). Within one priority, tenants share the engine by the Virtual Token Counter
of Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24): the tenant that was served the fewest tokens is
next, and one that returns after a pause starts at the level of the least served tenant that is waiting (where none is,
of the one served last). Within a tenant the order is that of the applications, then of arrival.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

from kea.engine.state import ContextState


class WaitingQueue:
    """Waiting contexts, fair between tenants. Lives as long as its batcher."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, str], list[tuple[float, int, ContextState]]] = {}
        self._served: dict[str, int] = {}
        self._level = 0  # of the tenant that was served last
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def priorities(self) -> set[int]:
        """The priorities of which contexts wait."""
        return {priority for priority, _ in self._lanes}

    def push(self, context: ContextState) -> None:
        tenant = context.spec.tenant
        lane = self._lanes.setdefault((context.spec.priority, tenant), [])
        if not lane:
            self._lift(tenant)
        bisect.insort(lane, _entry(context), key=lambda entry: entry[:2])
        self._num_waiting += 1

    def remove(self, context: ContextState) -> None:
        key = (context.spec.priority, context.spec.tenant)
        lane = self._lanes[key]
        index = bisect.bisect_left(lane, _entry(context)[:2], key=lambda entry: entry[:2])
        assert lane[index][2] is context, "the queue's order changed while the context waited"
        del lane[index]
        self._num_waiting -= 1
        if not lane:
            del self._lanes[key]

    def take(self, context: ContextState) -> None:
        """Remove a context that is served now."""
        self._level = self._served.get(context.spec.tenant, 0)
        self.remove(context)

    def charge(self, tenant: str, num_tokens: int) -> None:
        """Record that the engine computed `num_tokens` tokens for a tenant."""
        self._served[tenant] = self._served.get(tenant, 0) + num_tokens

    def in_order(self, priority: int) -> Iterator[ContextState]:
        """Yield the waiting contexts of a priority, first to be served first. The caller may remove what it was given.

        The tenants are visited in rounds, least served first.
        """
        tenants = sorted((t for p, t in self._lanes if p == priority), key=lambda t: self._served.get(t, 0))
        lanes = [list(self._lanes[priority, tenant]) for tenant in tenants]
        for round_of_tenants in itertools.zip_longest(*lanes):
            yield from (entry[2] for entry in round_of_tenants if entry is not None)

    def _lift(self, tenant: str) -> None:
        levels = [self._served.get(other, 0) for _, other in self._lanes if other != tenant]
        self._served[tenant] = max(self._served.get(tenant, 0), min(levels, default=self._level))


def _entry(context: ContextState) -> tuple[float, int, ContextState]:
    return (context.spec.order, context.arrival, context)
