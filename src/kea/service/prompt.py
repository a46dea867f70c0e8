"""From a call and the values of its inputs to the text before each output. Knows no engine and no tokens.

A plain template is joined. A chat prompt is rendered with the model's chat template once per output, up to that output,
with a marker in the place of every output; the text between two markers is what stands between these outputs. So the
model sees exactly what its template would write for the finished conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kea.errors import TemplateError, Unsupported
from kea.program.call import CallSpec, InputParameter
from kea.program.template import ConstantFill, PlaceholderGen, Segment, Turn

ValueOf = Callable[[str], str]


class Tokenizer(Protocol):
    """What the service needs of `kea.models.tokenizer.Tokenizer`."""

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, special: bool = True) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The text before each output, in order.

    `special`: the first is encoded with the tokenizer's begin-of-sequence token; a chat template writes its own.
    """

    texts: tuple[str, ...]
    special: bool


def render_prompt(call: CallSpec, value_of: ValueOf, tokenizer: Tokenizer) -> RenderedPrompt:
    """Render a call whose inputs are ready. Raises `TemplateError`, or `Unsupported` without a chat template."""
    values = _InputValues(call.inputs, value_of)
    if call.prompt.turns is None:
        return RenderedPrompt(tuple(_split_at_outputs(call.prompt.segments, values)), special=True)
    if not tokenizer.has_chat_template:
        raise Unsupported(
            f"call {call.name!r} is written as messages, but the model has no chat template.",
            hint="Write it as a plain template.",
            param="messages",
        )
    return RenderedPrompt(tuple(_chat_texts(call, values, tokenizer)), special=False)


class _InputValues:
    """The texts of inputs by name, read on demand: one that the template does not name may not be ready."""

    def __init__(self, inputs: Sequence[InputParameter], value_of: ValueOf) -> None:
        self._parts = {item.name: item.parts for item in inputs}
        self._value_of = value_of

    def __getitem__(self, name: str) -> str:
        parts = self._parts[name]
        return "".join(part if isinstance(part, str) else self._value_of(part.variable_id) for part in parts)


def _split_at_outputs(segments: Sequence[Segment], values: _InputValues) -> list[str]:
    texts, parts = [], list[str]()
    for segment in segments:
        if isinstance(segment, PlaceholderGen):
            texts.append("".join(parts))
            parts = []
        else:
            parts.append(segment.text if isinstance(segment, ConstantFill) else values[segment.name])
    return texts


def _chat_texts(call: CallSpec, values: _InputValues, tokenizer: Tokenizer) -> list[str]:
    assert call.prompt.turns is not None
    pieces = [(turn, _turn_texts(turn, values)) for turn in call.prompt.turns]
    markers = _Markers(text for _, texts in pieces for text in texts)
    texts: list[str] = []
    done: list[dict[str, str]] = []
    for turn, parts in pieces:
        content = parts[0]
        for part in parts[1:]:
            texts.append(_text_before_output(done, content, markers, len(texts), tokenizer))
            content += markers[len(texts) - 1] + part
        done.append({"role": turn.role, "content": content})
    return _without_earlier(texts, call, markers)


def _turn_texts(turn: Turn, values: _InputValues) -> list[str]:
    """Return the texts of a turn around its outputs: one more than it has outputs."""
    texts = [""]
    for segment in turn.segments:
        if isinstance(segment, PlaceholderGen):
            texts.append("")
        else:
            texts[-1] += segment.text if isinstance(segment, ConstantFill) else values[segment.name]
    return texts


def _text_before_output(
    done: list[dict[str, str]], content: str, markers: _Markers, output_idx: int, tokenizer: Tokenizer
) -> str:
    """Render the conversation up to an output. One that begins its turn follows the template's generation prompt."""
    if not content:
        return tokenizer.render_chat(done, add_generation_prompt=True)
    marker = markers[output_idx]
    turn = {"role": "assistant", "content": content + marker}
    return tokenizer.render_chat([*done, turn], add_generation_prompt=False).rpartition(marker)[0]


def _without_earlier(texts: list[str], call: CallSpec, markers: _Markers) -> list[str]:
    """Cut from each text what stands before the output in front of it."""
    cut: list[str] = []
    for idx, text in enumerate(texts):
        lost = (earlier for earlier in range(idx) if text.count(markers[earlier]) != 1)
        lost_idx = next(lost, None if text else idx)
        if lost_idx is not None:
            name = call.prompt.outputs[lost_idx]
            raise TemplateError(
                f"call {call.name!r}: the model's chat template does not keep the output {{{{{name}}}}} in its place.",
                hint="Write the call as a plain template, or with one output per call.",
                param="messages",
            )
        cut.append(text.partition(markers[idx - 1])[2] if idx else text)
    return cut


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
