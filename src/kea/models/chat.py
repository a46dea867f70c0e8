"""Chat templates: messages to one text, through transformers' sandboxed renderer. Knows no token ids, no requests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from kea.errors import InvalidRequest, Unsupported
from kea.models.guard import Span, SpecialTokens

PRIVATE_USE = range(0xF0000, 0xF0100)


class ChatTemplate:
    """The chat template of one tokenizer, which may be absent (`exists`)."""

    def __init__(self, tokenizer: Any, special: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._special = special
        template = tokenizer.chat_template or ""
        self._source = "\n".join(template.values()) if isinstance(template, dict) else str(template)

    @property
    def exists(self) -> bool:
        return bool(self._source)

    @property
    def supports_tools(self) -> bool:
        """Whether the template reads the list of tools."""
        return re.search(r"\btools\b", self._source) is not None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """Return the text of a conversation; `add_generation_prompt` opens the assistant's next turn.

        `continue_final_message` leaves the last message open instead (then no turn is opened). Raises `Unsupported`
        where there is no template, `InvalidRequest` with the template's own words where it refuses the messages.
        """
        import jinja2

        if not self.exists:
            raise Unsupported(
                "This model's tokenizer has no chat template.",
                hint="Send a plain prompt, or serve a chat model.",
                param="messages",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                tokenize=False,
                **template_kwargs,
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"The chat template refuses these messages: {error}", param="messages") from error
        return str(text)

    def render_guarded(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[str, list[Span]]:
        """Return the text, and the spans of it in which a value spells out a special token.

        Raises as `render` does.
        """
        try:
            return self._render_marked(messages, options)
        except RecursionError:
            raise InvalidRequest("The messages hold values that are nested too deeply.", param="messages") from None

    def _render_marked(self, messages: Sequence[dict[str, Any]], options: dict[str, Any]) -> tuple[str, list[Span]]:
        opening, closing = _unused_characters(json.dumps([messages, options], ensure_ascii=False, default=str))

        def mark(value: Any) -> Any:
            if isinstance(value, str):
                pattern = self._special.pattern
                return pattern.sub(lambda match: opening + match.group() + closing, value) if pattern else value
            if isinstance(value, dict):
                return {mark(key): mark(item) for key, item in value.items()}
            return [mark(item) for item in value] if isinstance(value, list | tuple) else value

        return _unmark(self.render(mark(list(messages)), **mark(options)), opening, closing)


def check_template(template: str) -> None:
    """Raise `InvalidRequest` where a chat template cannot be parsed. No tokenizer is needed, and no transformers."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        """The tag by which templates mark what an assistant wrote."""

        tags = {"generation"}  # noqa: RUF012 - so it is declared there

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        jinja2.Environment(extensions=[Generation, loopcontrols]).parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise _unparsed(error) from error


def check_syntax(tokenizer: Any) -> None:
    """Raise `InvalidRequest` where a tokenizer's chat template cannot be parsed; it may refuse this probe."""
    import jinja2

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise _unparsed(error) from error
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError):
        return  # it was parsed


def _unparsed(error: Any) -> InvalidRequest:
    return InvalidRequest(
        f"The chat template cannot be parsed: {error.message} (line {error.lineno}).", param="chat_template"
    )


def _unused_characters(text: str) -> tuple[str, str]:
    """Return two private-use characters that do not occur in `text`."""
    unused = [chr(code) for code in PRIVATE_USE if chr(code) not in text]
    if len(unused) < 2:
        raise InvalidRequest("The messages use the whole private-use range of Unicode.", param="messages")
    return unused[0], unused[1]


def _unmark(marked: str, opening: str, closing: str) -> tuple[str, list[Span]]:
    """Remove the markers; return the text and the spans that they enclosed."""
    parts: list[str] = []
    spans: list[Span] = []
    length, start = 0, 0
    for part in re.split(f"([{opening}{closing}])", marked):
        if part == opening:
            start = length
        elif part == closing:
            spans.append((start, length))
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), spans
