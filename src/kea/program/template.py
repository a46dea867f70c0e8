"""Prompt templates: `{{name}}` placeholders parsed into segments. Knows no values and no model.

A prompt is a list of segments: constant text, an input (`PlaceholderFill`), an output (`PlaceholderGen`). A chat prompt
is a list of turns, each with its segments; its outputs stand inside assistant turns. What follows the last output is
cut: it could change no output (Parrot's `remove_pure_fill`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from kea.errors import TemplateError

PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ConstantFill:
    """Text that is the same in every call of the template."""

    text: str


@dataclass(frozen=True, slots=True)
class PlaceholderFill:
    """An input: filled with the value of a parameter."""

    name: str


@dataclass(frozen=True, slots=True)
class PlaceholderGen:
    """An output: written by the model."""

    name: str


Segment = ConstantFill | PlaceholderFill | PlaceholderGen


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as its author wrote it: a role and a template."""

    role: str
    template: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One parsed turn."""

    role: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A parsed prompt: plain (`turns` is None, `segments` up to the last output) or chat (`turns` likewise)."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order of first appearance, without repetition."""
        return tuple(dict.fromkeys(part.name for part in self.segments if isinstance(part, PlaceholderFill)))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.segments if isinstance(part, PlaceholderGen))


def placeholders(template: str) -> tuple[str, ...]:
    """Return the names in a template, in order, with repetitions."""
    return tuple(PLACEHOLDER.findall(template))


def parse_template(template: str, inputs: Set[str], outputs: Set[str]) -> Prompt:
    """Parse a plain template. Raises `TemplateError` for a name that is no parameter or an output written twice."""
    segments = tuple(_segments(template, inputs, outputs))
    _check_outputs(segments, outputs)
    return Prompt(segments[: _end_of_outputs(segments)])


def parse_messages(messages: Sequence[Message], inputs: Set[str], outputs: Set[str]) -> Prompt:
    """Parse a chat prompt; each output must stand inside an assistant turn. Raises `TemplateError`."""
    turns = [Turn(message.role, tuple(_segments(message.template, inputs, outputs))) for message in messages]
    for turn in turns:
        _check_turn(turn)
    _check_outputs([segment for turn in turns for segment in turn.segments], outputs)
    num_turns = max(idx + 1 for idx, turn in enumerate(turns) if _has_output(turn))
    last = turns[num_turns - 1]
    turns[num_turns - 1 :] = [Turn(last.role, last.segments[: _end_of_outputs(last.segments)])]
    return Prompt(tuple(segment for turn in turns for segment in turn.segments), tuple(turns))


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before, if any."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _segments(template: str, inputs: Set[str], outputs: Set[str]) -> Iterator[Segment]:
    for idx, part in enumerate(PLACEHOLDER.split(template)):
        if idx % 2 == 0:
            if part:
                yield ConstantFill(part)
        elif part in outputs:
            yield PlaceholderGen(part)
        elif part in inputs:
            yield PlaceholderFill(part)
        else:
            allowed = ", ".join(sorted(inputs | outputs)) or "none"
            raise TemplateError(f"the template names {{{{{part}}}}}, which is no parameter; parameters are {allowed}.")


def _check_turn(turn: Turn) -> None:
    if turn.role not in ROLES:
        raise TemplateError(f"a message has the role {turn.role!r}; allowed are {', '.join(ROLES)}.", param="role")
    if turn.role != "assistant" and _has_output(turn):
        name = next(part.name for part in turn.segments if isinstance(part, PlaceholderGen))
        raise TemplateError(
            f"the output {{{{{name}}}}} stands in a {turn.role} message; outputs are written in assistant messages."
        )


def _check_outputs(segments: Iterable[Segment], outputs: Set[str]) -> None:
    written = [segment.name for segment in segments if isinstance(segment, PlaceholderGen)]
    twice = first_repeated(written)
    if twice is not None:
        raise TemplateError(f"the output {{{{{twice}}}}} stands at two places; an output is written once.")
    missing = min(outputs - set(written), default=None)
    if missing is not None:
        raise TemplateError(f"the template does not name the output {{{{{missing}}}}}, so it could never be set.")
    if not written:
        raise TemplateError("the template has no output; a call needs at least one.")


def _has_output(turn: Turn) -> bool:
    return any(isinstance(segment, PlaceholderGen) for segment in turn.segments)


def _end_of_outputs(segments: Sequence[Segment]) -> int:
    return max(idx + 1 for idx, segment in enumerate(segments) if isinstance(segment, PlaceholderGen))
