"""Reading many variables at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kea.client.values import flatten
from kea.client.variable import Variable
from kea.types import Criteria


def gather(*items: Any, criteria: Criteria | None = None, deadline_s: float | None = None) -> list[Any]:
    """Return the values of variables, in lists and tuples nested as the arguments are; other items stay as they are.

    All are read at the same time, within `deadline_s` together. Raises the first error in the order of the arguments.
    """
    reads = {variable: variable.begin_read(criteria, deadline_s) for variable in _variables(items)}
    try:
        values = {variable: read.result() for variable, read in reads.items()}
    finally:
        for read in reads.values():
            read.cancel()
    return [_filled(item, values.__getitem__) for item in items]


async def agather(*items: Any, criteria: Criteria | None = None, deadline_s: float | None = None) -> list[Any]:
    """Await `gather`."""
    reads = {variable: variable.begin_read(criteria, deadline_s) for variable in _variables(items)}
    try:
        values = {variable: await asyncio.wrap_future(read) for variable, read in reads.items()}
    finally:
        for read in reads.values():
            read.cancel()
    return [_filled(item, values.__getitem__) for item in items]


def _variables(items: tuple[Any, ...]) -> dict[Variable, None]:
    return {item: None for item in flatten(items) if isinstance(item, Variable)}


def _filled(item: Any, value_of: Callable[[Variable], str]) -> Any:
    if isinstance(item, Variable):
        return value_of(item)
    if isinstance(item, list | tuple):
        filled = [_filled(inner, value_of) for inner in item]
        return filled if isinstance(item, list) else tuple(filled)
    return item
