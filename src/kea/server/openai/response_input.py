"""From the input of a response to the messages that chat templates read, and from its output to those that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kea.errors import InvalidRequest, Unsupported
from kea.server.openai.messages import parse_arguments, text_of
from kea.server.wire.responses import InputItem
from kea.server.wire.responses_reply import ItemReply

ItemTypes = ("message", "function_call", "function_call_output", "reasoning")


def input_messages(given: str | Sequence[InputItem]) -> list[dict[str, Any]]:
    """Return the input as messages. Raises `InvalidRequest` or `Unsupported` with the item's place."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise InvalidRequest("input is an empty list; at least one item is needed.", param="input")
    messages: list[dict[str, Any]] = []
    for idx, item in enumerate(given):
        _add_item(messages, item, f"input[{idx}]")
    return [_without_mark(message) for message in messages]


def output_messages(items: Iterable[ItemReply]) -> list[dict[str, Any]]:
    """Return what a response wrote as messages of the conversation that goes on."""
    messages: list[dict[str, Any]] = []
    for item in items:
        text = "".join(part.text for part in item.content)
        if item.type == "function_call":
            turn = _open_turn(messages)
            turn.setdefault("tool_calls", []).append(_call(item.call_id, item.name, item.arguments, "output"))
        elif item.type == "reasoning":
            _open_turn(messages, is_new=True)["reasoning_content"] = text
        else:
            _open_turn(messages)["content"] += text
    return [_without_mark(message) for message in messages]


def _add_item(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    match item.type or "message":
        case "message":
            _add_message(messages, item, where)
        case "function_call":
            call = _call(_need(item.call_id, where, "call_id"), _need(item.name, where, "name"), item.arguments, where)
            _open_turn(messages).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            call_id = _need(item.call_id, where, "call_id")
            messages.append(
                {"role": "tool", "tool_call_id": call_id, "content": text_of(item.output, f"{where}.output")}
            )
        case "reasoning":
            if item.content:
                _open_turn(messages, is_new=True)["reasoning_content"] = _reasoning_of(item, where)
        case other:
            raise Unsupported(
                f"{where} is of type {other[:40]!r}; supported are {', '.join(ItemTypes)}.", param=f"{where}.type"
            )


def _add_message(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    role = _need(item.role, where, "role")
    text = text_of(item.content, f"{where}.content")
    if role == "assistant":
        _open_turn(messages)["content"] += text
    else:
        messages.append({"role": "system" if role == "developer" else role, "content": text})


def _reasoning_of(item: InputItem, where: str) -> str:
    if isinstance(item.content, str):
        return item.content
    texts = [part.text for part in item.content or () if part.text is not None]
    if len(texts) < len(item.content or ()):
        raise InvalidRequest(f"{where}.content has a part without text.", param=f"{where}.content")
    return "".join(texts)


def _open_turn(messages: list[dict[str, Any]], *, is_new: bool = False) -> dict[str, Any]:
    """Return the assistant's turn that is being put together at the end of the messages."""
    if is_new or not messages or not messages[-1].get("is_open"):
        messages.append({"role": "assistant", "content": "", "is_open": True})
    return messages[-1]


def _without_mark(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "is_open"}


def _call(call_id: str, name: str, arguments: str | None, where: str) -> dict[str, Any]:
    function = {"name": name, "arguments": parse_arguments(arguments or "", f"{where}.arguments")}
    return {"id": call_id, "type": "function", "function": function}


def _need(value: str | None, where: str, name: str) -> str:
    if value is None:
        raise InvalidRequest(f"{where}.{name} is required.", param=f"{where}.{name}")
    return value
