"""Tools of a request: which the model sees, what its output is forced to be, how it is read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kea.errors import InvalidRequest, Unsupported
from kea.server.parsers import CallArguments, CallBegin, Delta, Forced, Parser, create_forced_parser
from kea.server.served import ServedModel
from kea.server.wire.chat import FunctionTool, NamedToolChoice
from kea.types import Constraint

ANY_OBJECT = {"type": "object"}
ToolChoice = str | NamedToolChoice | None


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What a request's tools mean. `offered`: as the template reads them (None: none).

    `forced`: the output must call.
    """

    offered: tuple[dict[str, Any], ...] | None = None
    forced: Forced | None = None
    constraint: Constraint | None = None
    is_single: bool = False

    def create_parser(self, model: ServedModel, prompt_end: str, *, is_constrained: bool) -> Parser:
        """Create the parser of one output; one that must match something else (a schema) is content as it is."""
        if self.forced is not None:
            return create_forced_parser(self.forced)
        parser = model.output_format.create_parser(
            prompt_end, with_tools=bool(self.offered), is_constrained=is_constrained
        )
        return FirstCallOnly(parser) if self.is_single else parser


class FirstCallOnly:
    """Passes one tool call and drops others: what `parallel_tool_calls: false` asks for."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def feed(self, text: str) -> list[Delta]:
        return self._first(self._parser.feed(text))

    def finish(self) -> list[Delta]:
        return self._first(self._parser.finish())

    def _first(self, deltas: Sequence[Delta]) -> list[Delta]:
        return [delta for delta in deltas if not (isinstance(delta, CallBegin | CallArguments) and delta.call_idx)]


def plan_tools(
    model: ServedModel, tools: Sequence[FunctionTool], choice: ToolChoice, *, is_parallel: bool = True
) -> ToolPlan:
    """Return what `tools` and `tool_choice` mean for this model. Raises `InvalidRequest` or `Unsupported`."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice is set; it needs tools.", param="tool_choice")
        return ToolPlan()
    _check_tools(tools)
    if choice == "none":
        return ToolPlan()
    if not model.tokenizer.supports_tools:
        raise Unsupported("tools: this model's chat template does not read tools.", param="tools")
    offered = tuple(_as_template_tool(tool) for tool in tools)
    if choice == "required":
        schema = _schema_of_calls(tools, is_parallel=is_parallel)
        return ToolPlan(offered, Forced(), Constraint("json_schema", json.dumps(schema)))
    if isinstance(choice, NamedToolChoice):
        return _plan_named(tools, offered, choice.function.name)
    if model.output_format.calls is None and not model.output_format.is_harmony:
        raise Unsupported(
            "tools: how this model writes its tool calls is not known, so they could not be read back.",
            param="tools",
            hint="Start the server with a tool parser, or force a call by tool_choice.",
        )
    return ToolPlan(offered, is_single=not is_parallel)


def _plan_named(tools: Sequence[FunctionTool], offered: tuple[dict[str, Any], ...], name: str) -> ToolPlan:
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        raise InvalidRequest(
            f"tool_choice names {name!r}; tools has {', '.join(repr(tool.name) for tool in tools)}.",
            param="tool_choice",
        )
    return ToolPlan(offered, Forced(name), Constraint("json_schema", json.dumps(tool.parameters or ANY_OBJECT)))


def _check_tools(tools: Sequence[FunctionTool]) -> None:
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"tools names {twice!r} twice.", param="tools")


def _as_template_tool(tool: FunctionTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or ANY_OBJECT}
    return {"type": "function", "function": function}


def _schema_of_calls(tools: Sequence[FunctionTool], *, is_parallel: bool) -> dict[str, Any]:
    """Return the schema of a list of calls: each names a tool and has arguments that match it."""
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = _hoist(tool.parameters or ANY_OBJECT, tool.name, definitions)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [tool.name]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not is_parallel:
        schema["maxItems"] = 1
    return {**schema, "$defs": definitions} if definitions else schema


def _hoist(schema: dict[str, Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Move a schema's definitions to the root under names of its own, and let its references follow."""
    for key in ("$defs", "definitions"):
        own = schema.get(key)
        if isinstance(own, dict):
            definitions.update({f"{name}.{item}": _refer(value, name) for item, value in own.items()})
    return {key: _refer(value, name) for key, value in schema.items() if key not in ("$defs", "definitions")}


def _refer(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _refer_key(key, item, name) for key, item in value.items()}
    return [_refer(item, name) for item in value] if isinstance(value, list) else value


def _refer_key(key: str, value: Any, name: str) -> Any:
    if key == "$ref" and isinstance(value, str):
        for prefix in ("#/$defs/", "#/definitions/"):
            if value.startswith(prefix):
                return f"#/$defs/{name}.{value.removeprefix(prefix)}"
    return _refer(value, name)
