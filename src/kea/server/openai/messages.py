"""From the messages of a request to those that chat templates read. Knows no tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kea.errors import InvalidRequest, Unsupported
from kea.server.served import ServedModel
from kea.server.wire.chat import ChatBody, ChatMessage, ContentPart, ToolCall

RESERVED_OPTIONS = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip
TEXT_TYPES = ("text", "input_text", "output_text")


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return the messages as dicts: contents as text, arguments of tool calls as objects, `developer` as `system`."""
    return [_template_message(message, f"messages[{idx}]") for idx, message in enumerate(messages)]


def template_options(body: ChatBody, model: ServedModel) -> dict[str, Any]:
    """Return what the template is given beside messages and tools.

    Raises `Unsupported` for an effort it does not read.
    """
    options = check_options(body.chat_template_kwargs)
    if body.reasoning_effort is not None:
        options.update(effort_options(body.reasoning_effort, model.reads))
    return options


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the caller's own options of the template. Raises `InvalidRequest` for names that are ours."""
    reserved = next((name for name in options or () if name in RESERVED_OPTIONS or not name.isidentifier()), None)
    if reserved is not None:
        raise InvalidRequest(f"chat_template_kwargs may not set {reserved[:40]!r}.", param="chat_template_kwargs")
    return dict(options or {})


def effort_options(effort: str, reads: frozenset[str]) -> Mapping[str, Any]:
    """Return the template's options for an effort: some read the effort itself, some only whether to think at all."""
    if "reasoning_effort" in reads:
        return {"reasoning_effort": effort}
    if "enable_thinking" in reads:
        return {"enable_thinking": effort != "none"}
    raise Unsupported(
        f"reasoning_effort is {effort!r}; this model's chat template knows no reasoning effort.",
        param="reasoning_effort",
        hint="Leave it out.",
    )


def text_of(content: str | Sequence[ContentPart] | None, where: str) -> str:
    """Join the text parts of a content by line breaks. Raises `Unsupported` for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for idx, part in enumerate(content):
        if part.type not in TEXT_TYPES:
            raise Unsupported(
                f"{where}[{idx}] is of type {part.type[:40]!r}; only text is supported.", param=f"{where}[{idx}].type"
            )
        if part.text is None:
            raise InvalidRequest(f"{where}[{idx}].text is required.", param=f"{where}[{idx}].text")
        texts.append(part.text)
    return "\n".join(texts)


def _template_message(message: ChatMessage, where: str) -> dict[str, Any]:
    is_empty = message.content is None and not (message.tool_calls or message.refusal)
    if is_empty and not (message.role == "assistant" and (message.reasoning_content or message.reasoning)):
        raise InvalidRequest(f"{where}.content is required.", param=f"{where}.content")
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": text_of(message.content, f"{where}.content")}
    if message.name is not None:
        result["name"] = message.name
    if message.role == "assistant":
        result.update(_assistant_parts(message, where))
    elif message.tool_calls:
        raise InvalidRequest(
            f"{where}.tool_calls: only an assistant's message has tool calls.", param=f"{where}.tool_calls"
        )
    if message.role == "tool":
        if message.tool_call_id is None:
            raise InvalidRequest(
                f"{where}.tool_call_id is required in a tool's message.", param=f"{where}.tool_call_id"
            )
        result["tool_call_id"] = message.tool_call_id
    return result


def _assistant_parts(message: ChatMessage, where: str) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        parts["reasoning_content"] = reasoning
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        parts["tool_calls"] = [_template_call(call, f"{where}.tool_calls[{idx}]") for idx, call in calls]
    return parts


def _template_call(call: ToolCall, where: str) -> dict[str, Any]:
    arguments = parse_arguments(call.function.arguments, f"{where}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def parse_arguments(text: str, where: str) -> dict[str, Any]:
    """Return the arguments of an earlier call as an object; no text is no arguments."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is not a JSON object.", param=where)
    return value
