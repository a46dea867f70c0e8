"""Calls and programs: what a client submits, as frozen values. Knows no variables' values, no engine and no JSON.

A *call* is one semantic function with its parameters bound (`CallSpec`), or one native function of the operator
(`NativeCallSpec`). A *program* is a list of calls and of declared variables, submitted and accepted as a whole. Ids are
made by the client, so that submitting needs no round trip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kea.errors import InvalidRequest, TemplateError
from kea.program.output import OutputOptions
from kea.program.template import Message, Prompt, first_repeated, parse_messages, parse_template

ID_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
PRIORITY_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class VariableRef:
    """The value of a variable, whenever it is there."""

    variable_id: str


Part = str | VariableRef


@dataclass(frozen=True, slots=True)
class InputParameter:
    """An input: the parts of its text, one behind the other. A plain value is one part, an empty one is none."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class OutputParameter:
    """An output: the variable that it writes, and how."""

    name: str
    variable_id: str
    output: OutputOptions


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One call of a semantic function. Exactly one of `template` and `messages` is given.

    `priority`: smaller is earlier. `prompt` is parsed on creation; inputs that the template does not name are allowed
    and not waited for. Raises `TemplateError` or `InvalidRequest`.
    """

    id: str
    name: str
    inputs: tuple[InputParameter, ...]
    outputs: tuple[OutputParameter, ...]
    template: str | None = None
    messages: tuple[Message, ...] | None = None
    priority: int = 0
    prompt: Prompt = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_id(self.id, "call id")
        _check_names([*self.inputs, *self.outputs], self.name)
        if (self.template is None) == (self.messages is None):
            raise InvalidRequest(f"call {self.name!r} needs either a template or messages.", param="template")
        if not -PRIORITY_LIMIT <= self.priority <= PRIORITY_LIMIT:
            raise InvalidRequest(f"priority is {self.priority}; it must be within ±{PRIORITY_LIMIT}.", param="priority")
        try:
            object.__setattr__(self, "prompt", self._parse())
        except TemplateError as error:
            raise TemplateError(f"call {self.name!r}: {error.message}", hint=error.hint, param="template") from None

    def _parse(self) -> Prompt:
        inputs, outputs = {item.name for item in self.inputs}, {item.name for item in self.outputs}
        if self.messages is not None:
            return parse_messages(self.messages, inputs, outputs)
        return parse_template(self.template or "", inputs, outputs)

    @property
    def reads(self) -> tuple[str, ...]:
        """Ids of the variables that the call waits for, without repetition."""
        named = set(self.prompt.inputs)
        return _variable_ids(item.parts for item in self.inputs if item.name in named)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(item.variable_id for item in self.outputs)


@dataclass(frozen=True, slots=True)
class NativeInput:
    """An input of a native function: any JSON value, or a variable's text."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class NativeOutput:
    name: str
    variable_id: str


@dataclass(frozen=True, slots=True)
class NativeCallSpec:
    """One call of a function that the operator registered under the name `function`."""

    id: str
    name: str
    function: str
    inputs: tuple[NativeInput, ...]
    outputs: tuple[NativeOutput, ...]
    priority: int = 0

    def __post_init__(self) -> None:
        check_id(self.id, "call id")
        _check_names([*self.inputs, *self.outputs], self.name)
        if not self.outputs:
            raise InvalidRequest(f"call {self.name!r} has no output; a call needs at least one.", param="parameters")

    @property
    def reads(self) -> tuple[str, ...]:
        return _variable_ids([item.value] for item in self.inputs)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(item.variable_id for item in self.outputs)


AnyCall = CallSpec | NativeCallSpec


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """A variable that exists without a producer; `value` sets it at once."""

    id: str
    name: str = ""
    value: str | None = None

    def __post_init__(self) -> None:
        check_id(self.id, "variable id")


@dataclass(frozen=True, slots=True)
class Program:
    """What one request submits: accepted whole or refused whole."""

    calls: tuple[AnyCall, ...] = ()
    variables: tuple[VariableSpec, ...] = ()


def check_id(value: str, what: str) -> None:
    """Raise `InvalidRequest` unless the id is 1 to 64 letters, digits or any of `_.:-`."""
    if not ID_PATTERN.fullmatch(value):
        raise InvalidRequest(f"the {what} is {value[:80]!r}; it must match {ID_PATTERN.pattern}.", param="id")


def _check_names(parameters: Sequence[Any], call: str) -> None:
    twice = first_repeated([parameter.name for parameter in parameters])
    if twice is not None:
        raise InvalidRequest(f"call {call!r} has two parameters named {twice!r}.", param="parameters")


def _variable_ids(groups: Iterable[Iterable[Any]]) -> tuple[str, ...]:
    parts = (part for group in groups for part in group if isinstance(part, VariableRef))
    return tuple(dict.fromkeys(part.variable_id for part in parts))
