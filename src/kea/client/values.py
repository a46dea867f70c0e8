"""From Python values to the parts of an input: text, variables, lists of both at any depth. Knows no sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from kea.client.variable import Variable
from kea.errors import InvalidRequest
from kea.program.call import Part, VariableRef


def parts_of(value: object, separator: str, where: str) -> tuple[Part, ...]:
    """Return the parts of a value: a variable, lists and tuples of values joined with `separator`, else its `str()`."""
    parts: list[Part] = []
    for idx, item in enumerate(flatten(value)):
        if idx:
            _append(parts, separator)
        if isinstance(item, Variable):
            parts.append(VariableRef(item.id))
        else:
            _append(parts, text_of(item, where))
    return tuple(parts)


def flatten(value: object) -> Iterator[object]:
    """Yield the items of lists and tuples at any depth, in order; any other value is one item."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def text_of(value: object, where: str) -> str:
    """Return `str(value)`. Raises `InvalidRequest` where that would write a variable's name instead of its text."""
    if any(isinstance(item, Variable) for item in _contents(value)):
        raise InvalidRequest(
            f"{where} has a variable inside {type(value).__name__}, where its text cannot be filled in.",
            hint="Pass variables to a parameter annotated kea.Input, alone or in lists.",
            param=where,
        )
    return str(value)


def variables_in(values: Iterable[object]) -> Iterator[Variable]:
    """Yield the variables among values and in their lists."""
    return (item for value in values for item in flatten(value) if isinstance(item, Variable))


def _contents(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for pair in value.items():
            yield from _contents(pair)
    elif isinstance(value, list | tuple | Set):
        for item in value:
            yield from _contents(item)
    else:
        yield value


def _append(parts: list[Part], text: str) -> None:
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)
