"""The program graph of a session: which call writes a variable, which calls read it. Knows no values and no states.

Calls are added in batches, whole or not at all: names must be known, a variable has one producer, there is no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kea.errors import Conflict, TemplateError
from kea.program.order import CycleFound, TopologicalOrder
from kea.program.template import first_repeated


@dataclass(frozen=True, slots=True)
class Node:
    """A call as the graph sees it: its id, its name for messages, the variables that it reads and writes."""

    id: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class ProgramGraph:
    """The calls and variables of one session; they stay until the session ends."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._producers: dict[str, str] = {}
        self._consumers: dict[str, dict[str, None]] = {}
        self._declared: set[str] = set()
        self._order = TopologicalOrder(self.successors, self.predecessors)

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, variable_id: str) -> bool:
        """Tell whether the variable is declared or written by a call."""
        return variable_id in self._declared or variable_id in self._producers

    def add(self, nodes: Sequence[Node], declared: Sequence[str] = ()) -> None:
        """Add variables without a producer, then calls. Raises `Conflict` or `TemplateError`, and then adds nothing."""
        added: list[Node] = []
        self._declare(declared)
        try:
            for node in nodes:
                self._add_node(node)
                added.append(node)
            for node in nodes:
                self._check_names(node)
        except (Conflict, TemplateError):
            for node in reversed(added):
                self._remove_node(node)
            self._declared.difference_update(declared)
            raise

    def producer_of(self, variable_id: str) -> str | None:
        """Return the id of the call that writes the variable (Parrot's GetProducer)."""
        return self._producers.get(variable_id)

    def consumers_of(self, variable_id: str) -> tuple[str, ...]:
        """Return the ids of the calls that read the variable (Parrot's GetConsumers)."""
        return tuple(self._consumers.get(variable_id, ()))

    def successors(self, call_id: str) -> Iterator[str]:
        """Yield the calls that read what this call writes; one that reads two of its outputs comes twice."""
        for variable_id in self._nodes[call_id].writes:
            yield from self.consumers_of(variable_id)

    def predecessors(self, call_id: str) -> Iterator[str]:
        """Yield the calls that write what this call reads, likewise."""
        for variable_id in self._nodes[call_id].reads:
            producer = self.producer_of(variable_id)
            if producer is not None:
                yield producer

    def in_order(self, call_ids: Iterable[str] | None = None) -> list[str]:
        """Return these calls (all when None), each behind those whose variables it reads."""
        return self._order.sorted(call_ids)

    def _declare(self, variable_ids: Sequence[str]) -> None:
        taken = next((variable_id for variable_id in variable_ids if variable_id in self), None)
        taken = taken or first_repeated(variable_ids)
        if taken is not None:
            raise Conflict(f"variable {taken!r} exists already.", param="variables")
        self._declared.update(variable_ids)

    def _add_node(self, node: Node) -> None:
        self._check_new(node)
        self._nodes[node.id] = node
        for variable_id in node.writes:
            self._producers[variable_id] = node.id
        for variable_id in node.reads:
            self._consumers.setdefault(variable_id, {})[node.id] = None
        try:
            self._order.insert(node.id, self.predecessors(node.id), self.successors(node.id))
        except CycleFound:
            self._remove_node(node)
            raise TemplateError(
                f"call {node.name!r} would wait for its own output: the calls form a cycle.", param="calls"
            ) from None

    def _check_new(self, node: Node) -> None:
        if node.id in self._nodes:
            raise Conflict(f"call {node.id!r} exists already.", param="calls")
        if set(node.reads) & set(node.writes):
            raise TemplateError(f"call {node.name!r} reads its own output: the calls form a cycle.", param="calls")
        taken = next((variable_id for variable_id in node.writes if variable_id in self._producers), None)
        taken = taken or first_repeated(node.writes)
        if taken is not None:
            raise Conflict(f"call {node.name!r} writes variable {taken!r}, which another output writes.", param="calls")

    def _check_names(self, node: Node) -> None:
        unknown = next((variable_id for variable_id in node.reads if variable_id not in self), None)
        if unknown is not None:
            raise TemplateError(
                f"call {node.name!r} reads variable {unknown!r}, which is neither declared nor written by a call."
            )

    def _remove_node(self, node: Node) -> None:
        if node.id in self._order:
            self._order.remove(node.id)
        for variable_id in node.writes:
            del self._producers[variable_id]
        for variable_id in node.reads:
            del self._consumers[variable_id][node.id]
        del self._nodes[node.id]
