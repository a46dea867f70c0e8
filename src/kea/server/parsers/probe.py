"""What a chat template writes: it is asked to render small conversations, and its text is looked at. Knows no HTTP.

So the parsers follow what the model was taught to write, not what its template's source happens to mention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kea.errors import KeaError
from kea.server.parsers.choose import PROBE_NAME

Render = Callable[..., str]

USER = {"role": "user", "content": "probe"}
CALL_ID = "probe1234"  # nine letters or digits: Mistral's templates insist on it
TOOL = {
    "type": "function",
    "function": {"name": PROBE_NAME, "description": "probe", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": CALL_ID, "type": "function", "function": {"name": PROBE_NAME, "arguments": {"a": 1}}}
RESULT = {"role": "tool", "name": PROBE_NAME, "tool_call_id": CALL_ID, "content": "probe"}
THOUGHT = {"role": "assistant", "content": "probe", "reasoning_content": "probe", "thinking": "probe"}
CONVERSATIONS: tuple[tuple[list[dict[str, Any]], Mapping[str, Any]], ...] = (
    ([USER], {"add_generation_prompt": True}),
    ([USER, THOUGHT], {"add_generation_prompt": False}),
    ([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT], {"tools": [TOOL]}),
    ([USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT], {"tools": [TOOL]}),
)
OPTIONS: Mapping[str, tuple[object, object]] = {
    "reasoning_effort": ("low", "high"),
    "enable_thinking": (True, False),
    "parallel_tool_calls": (True, False),
}


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """`written`: all that the template wrote. `reads`: the options that changed what it wrote."""

    written: str = ""
    reads: frozenset[str] = frozenset()


def probe_template(render: Render) -> TemplateFacts:
    """Render the probes. What the template refuses, it does not write."""
    written = [_try_render(render, messages, options) for messages, options in CONVERSATIONS]
    reads = frozenset(name for name, values in OPTIONS.items() if _reads(render, name, values))
    return TemplateFacts("\n".join(text for text in written if text is not None), reads)


def _reads(render: Render, name: str, values: tuple[object, object]) -> bool:
    first, second = (_try_render(render, [USER], {"add_generation_prompt": True, name: value}) for value in values)
    return first != second


def _try_render(render: Render, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> str | None:
    try:
        return render(messages, **options)
    except KeaError:
        return None
