"""A prompt as text, without a model: what a function returns outside a session. Knows no sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kea.program.template import PLACEHOLDER, Message

OF_VARIABLES = frozenset({"get", "aget", "stream", "astream", "set", "aset", "cancel", "acancel"})


class Rendered(str):
    """The prompt with its inputs filled in; outputs stay `{{name}}`. `messages` are those of a chat prompt."""

    messages: tuple[Message, ...] | None

    def __new__(cls, text: str, messages: tuple[Message, ...] | None = None) -> Rendered:
        rendered = super().__new__(cls, text)
        rendered.messages = messages
        return rendered

    def __getattr__(self, name: str) -> Any:
        if name in OF_VARIABLES:
            raise AttributeError(
                f"the prompt as text has no {name!r}: its function was called outside of a session. Call it within "
                "`with kea.connect() as session:`, or on another thread by function.submit(session, ...), and it "
                "returns a variable."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def render(source: str | Sequence[Message], values: Mapping[str, str]) -> Rendered:
    """Fill the inputs into a template or into messages (which are written one below the other, after their roles)."""
    if isinstance(source, str):
        return Rendered(_fill(source, values))
    messages = tuple(Message(message.role, _fill(message.template, values)) for message in source)
    return Rendered("\n".join(f"[{message.role}]\n{message.template}" for message in messages), messages)


def _fill(template: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
