"""From Python values to the parts of an input: text, variables, lists of both at any depth. Knows no sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kea.client.variable import Variable
from kea.errors import InvalidRequest
from kea.program.call import Part, VariableRef
from kea.program.fields import check_unicode, shorten

ALLOWED = "str, int, float and bool"
ALLOWED_IN_LISTS = "str, int, float, bool, kea.Variable, and lists or tuples of these"


def parts_of(value: object, separator: str, where: str) -> tuple[Part, ...]:
    """Return the parts of a value: a variable, a text, a number, or lists and tuples of them, joined with `separator`.

    Raises `InvalidRequest` for any other value, also inside of lists.
    """
    parts: list[Part] = []
    is_list = isinstance(value, list | tuple)
    for idx, item in enumerate(flatten(value)):
        if idx:
            _append(parts, separator)
        if isinstance(item, Variable):
            parts.append(VariableRef(item.id))
        else:
            _append(parts, text_of(item, f"item {idx} of {where}" if is_list else where, allowed=ALLOWED_IN_LISTS))
    return tuple(parts)


def flatten(value: object) -> Iterator[object]:
    """Yield the items of lists and tuples at any depth, in order; any other value is one item."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def text_of(value: object, where: str, *, allowed: str = ALLOWED) -> str:
    """Return a text as it is, and a number or a truth value as Python writes it. Raises `InvalidRequest` otherwise:
    what `str()` makes of any other object is rarely what a prompt should say.
    """
    if isinstance(value, str | int | float):  # bool is an int
        text = str(value)
        check_unicode(text, where)
        return text
    raise InvalidRequest(
        f"{where} is {shorten(value)} ({type(value).__name__}); allowed are {allowed}.", hint=_hint(value), param=where
    )


def _hint(value: object) -> str | None:
    if value is None:
        return "Give an empty text where there is nothing to say."
    if isinstance(value, Variable | list | tuple):
        return "A parameter that is annotated kea.Input takes variables and lists."
    if isinstance(value, Iterator):
        return "Pass list(...) of it."
    return "Write it as text first, json.dumps(...) for example; a variable in it can only stand alone or in lists."


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
