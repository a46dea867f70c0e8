"""From a call and the values of its inputs to the text before each output. Knows no engine and no tokens.

A plain template is joined. A chat prompt is rendered with the model's chat template once per output, up to that output,
with a marker in the place of every output; the text between two markers is what stands between these outputs. So the
model sees exactly what its template would write for the finished conversation.

Values are data: where one spells out a special token of the model, it stays text. In a plain template the author may
write special tokens; in messages only the chat template does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kea.errors import TemplateError, Unsupported
from kea.program.call import CallSpec, InputParameter
from kea.program.template import ConstantFill, PlaceholderGen, Segment, Turn

ValueOf = Callable[[str], str]
Span = tuple[int, int]
"""The characters [start, stop) of a text."""


class Chat(Protocol):
    """What the service needs of `kea.models.chat.ChatTemplate`."""

    @property
    def exists(self) -> bool: ...

    def render_guarded(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[str, list[Span]]: ...


class Tokenizer(Protocol):
    """What the service needs of `kea.models.tokenizer.Tokenizer`."""

    @property
    def chat(self) -> Chat: ...

    @property
    def max_token_chars(self) -> int: ...

    def encode(self, text: str, *, special: bool = True, literal: Sequence[Span] = ()) -> list[int]: ...

    def encode_continuation(self, text: str, *, literal: Sequence[Span] = ()) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class PromptText:
    """A text, and the spans of it in which special tokens stay text."""

    text: str
    literal: tuple[Span, ...] = ()

    def behind(self, lead: str) -> PromptText:
        """Return this text behind another one, which is literal."""
        if not lead:
            return self
        shifted = ((start + len(lead), stop + len(lead)) for start, stop in self.literal)
        return PromptText(lead + self.text, ((0, len(lead)), *shifted))

    def part(self, start: int, stop: int) -> PromptText:
        """Return the characters [start, stop)."""
        inside = [(max(left, start) - start, min(right, stop) - start) for left, right in self.literal]
        return PromptText(self.text[start:stop], tuple(span for span in inside if span[0] < span[1]))


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The text before each output, in order.

    `special`: the first is encoded with the tokenizer's begin-of-sequence token; a chat template writes its own.
    """

    texts: tuple[PromptText, ...]
    special: bool


def render_prompt(call: CallSpec, value_of: ValueOf, tokenizer: Tokenizer) -> RenderedPrompt:
    """Render a call whose inputs are ready. Raises `TemplateError`, or `Unsupported` without a chat template."""
    values = _InputValues(call.inputs, value_of)
    if call.prompt.turns is None:
        return RenderedPrompt(tuple(_split_at_outputs(call.prompt.segments, values)), special=True)
    if not tokenizer.chat.exists:
        raise Unsupported(
            "the call is written as messages, but the model has no chat template.",
            hint="Write it as a plain template.",
            param="messages",
        )
    return RenderedPrompt(tuple(_chat_texts(call, values, tokenizer.chat)), special=False)


class _InputValues:
    """The texts of inputs by name, read on demand: one that the template does not name may not be ready."""

    def __init__(self, inputs: Sequence[InputParameter], value_of: ValueOf) -> None:
        self._parts = {item.name: item.parts for item in inputs}
        self._value_of = value_of

    def __getitem__(self, name: str) -> str:
        parts = self._parts[name]
        return "".join(part if isinstance(part, str) else self._value_of(part.variable_id) for part in parts)


def _split_at_outputs(segments: Sequence[Segment], values: _InputValues) -> list[PromptText]:
    texts: list[PromptText] = []
    text, literal = "", list[Span]()
    for segment in segments:
        if isinstance(segment, PlaceholderGen):
            texts.append(PromptText(text, tuple(literal)))
            text, literal = "", []
        elif isinstance(segment, ConstantFill):
            text += segment.text
        else:
            value = values[segment.name]
            literal.append((len(text), len(text) + len(value)))
            text += value
    return texts


def _chat_texts(call: CallSpec, values: _InputValues, chat: Chat) -> list[PromptText]:
    assert call.prompt.turns is not None
    pieces = [(turn, _turn_texts(turn, values)) for turn in call.prompt.turns]
    markers = _Markers(text for _, texts in pieces for text in texts)
    texts: list[PromptText] = []
    done: list[dict[str, Any]] = []
    for turn, parts in pieces:
        content = parts[0]
        for part in parts[1:]:
            whole = _text_before_output(done, content, markers[len(texts)], chat)
            texts.append(_without_earlier(whole, len(texts), call, markers))
            content += markers[len(texts) - 1] + part
        done.append({"role": turn.role, "content": content})
    return texts


def _turn_texts(turn: Turn, values: _InputValues) -> list[str]:
    """Return the texts of a turn around its outputs: one more than it has outputs."""
    texts = [""]
    for segment in turn.segments:
        if isinstance(segment, PlaceholderGen):
            texts.append("")
        else:
            texts[-1] += segment.text if isinstance(segment, ConstantFill) else values[segment.name]
    return texts


def _text_before_output(done: list[dict[str, Any]], content: str, marker: str, chat: Chat) -> PromptText:
    """Render the conversation up to an output; it is empty when the template loses the marker.

    An output that begins its turn follows the template's generation prompt.
    """
    if not content:
        text, literal = chat.render_guarded(done, add_generation_prompt=True)
        return PromptText(text, tuple(literal))
    turn = {"role": "assistant", "content": content + marker}
    text, literal = chat.render_guarded([*done, turn], add_generation_prompt=False)
    return PromptText(text, tuple(literal)).part(0, max(0, text.rfind(marker)))


def _without_earlier(whole: PromptText, idx: int, call: CallSpec, markers: _Markers) -> PromptText:
    """Cut what stands before the output in front of output `idx`."""
    lost = (earlier for earlier in range(idx) if whole.text.count(markers[earlier]) != 1)
    lost_idx = next(lost, None if whole.text else idx)
    if lost_idx is not None:
        name = call.prompt.outputs[lost_idx]
        raise TemplateError(
            f"the model's chat template does not keep the output {{{{{name}}}}} in its place.",
            hint="Write the call as a plain template, or with one output per call.",
            param="messages",
        )
    if not idx:
        return whole
    marker = markers[idx - 1]
    return whole.part(whole.text.index(marker) + len(marker), len(whole.text))


class _Markers:
    """Texts that stand for outputs: letters and digits only, in none of the given texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        joined = "\n".join(texts)
        number = 0
        while f"OUTPUT{number}X" in joined:
            number += 1
        self._stem = f"OUTPUT{number}X"

    def __getitem__(self, idx: int) -> str:
        return f"{self._stem}{idx}END"
