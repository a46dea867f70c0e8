"""From Python values to the parts of an input: text, variables, lists of both at any depth. Knows no sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kea.client.variable import REPR_MARK, Variable
from kea.errors import InvalidRequest
from kea.program.call import Part, VariableRef
from kea.program.fields import check_unicode


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
    """Return `str(value)`. Raises `InvalidRequest` where that would write an object's name instead of its text."""
    if isinstance(value, Iterator):
        raise InvalidRequest(
            f"{where} is a {type(value).__name__}, which has no text before it is run through.",
            hint="Pass list(...) of it.",
            param=where,
        )
    text = str(value)
    if not isinstance(value, str) and REPR_MARK in text:
        raise InvalidRequest(
            f"{where} has a variable inside {type(value).__name__}, where its text cannot be filled in.",
            hint="Pass variables to a parameter annotated kea.Input, alone or in lists.",
            param=where,
        )
    check_unicode(text, where)
    return text


def json_of(value: object, where: str) -> Any:
    """Return the value as it comes out of JSON, so that every transport gives the same. Raises `InvalidRequest`."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{where} is no JSON value: {error}.",
            hint="A variable may be given alone, anything else as JSON has it.",
            param=where,
        ) from None
    return json.loads(text)


def variables_in(values: Iterable[object]) -> Iterator[Variable]:
    """Yield the variables among values and in their lists."""
    return (item for value in values for item in flatten(value) if isinstance(item, Variable))


def _append(parts: list[Part], text: str) -> None:
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)
