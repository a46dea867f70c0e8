"""Reading many variables at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from kea.client.loop import await_result, result_of
from kea.client.values import flatten
from kea.client.variable import Variable
from kea.types import Criteria

WAVE = 64
"""So many are asked for at a time within a deadline: over HTTP each takes a connection then."""

Reads = dict[Variable, Future[str]]


def gather(*items: Any, criteria: Criteria | None = None, deadline_s: float | None = None) -> list[Any]:
    """Return the values of variables, in lists and tuples nested as the arguments are; other items stay as they are.

    Raises the first error in the order of the arguments, or `DeadlineExceeded` when `deadline_s` seconds passed before
    all were there.
    """
    values: dict[Variable, str] = {}
    with _Reader(items, criteria, deadline_s).waves() as waves:
        for reads in waves:
            values |= {variable: result_of(read) for variable, read in reads.items()}
    return [_filled(item, values.__getitem__) for item in items]


async def agather(*items: Any, criteria: Criteria | None = None, deadline_s: float | None = None) -> list[Any]:
    """Await `gather`."""
    values: dict[Variable, str] = {}
    with _Reader(items, criteria, deadline_s).waves() as waves:
        for reads in waves:
            values |= {variable: await await_result(read) for variable, read in reads.items()}
    return [_filled(item, values.__getitem__) for item in items]


class _Reader:
    """Begins to read variables, wave by wave, within what is left of the deadline."""

    def __init__(self, items: tuple[Any, ...], criteria: Criteria | None, deadline_s: float | None) -> None:
        self._variables = list({item: None for item in flatten(items) if isinstance(item, Variable)})
        self._criteria = criteria
        self._ends_s = None if deadline_s is None else time.monotonic() + deadline_s

    @contextmanager
    def waves(self) -> Iterator[Iterator[Reads]]:
        """Yield the waves; what is still being read at the end (after an error) is given up."""
        begun: list[Future[str]] = []
        try:
            yield self._waves(begun)
        finally:
            for read in begun:
                read.cancel()

    def _waves(self, begun: list[Future[str]]) -> Iterator[Reads]:
        size = len(self._variables) if self._ends_s is None else WAVE
        for start in range(0, len(self._variables), max(1, size)):
            left_s = None if self._ends_s is None else max(0.0, self._ends_s - time.monotonic())
            wave = self._variables[start : start + size]
            reads = {variable: variable.begin_read(self._criteria, left_s) for variable in wave}
            begun[:] = reads.values()
            yield reads


def _filled(item: Any, value_of: Callable[[Variable], str]) -> Any:
    if isinstance(item, Variable):
        return value_of(item)
    if isinstance(item, list | tuple):
        filled = [_filled(inner, value_of) for inner in item]
        return filled if isinstance(item, list) else tuple(filled)
    return item
