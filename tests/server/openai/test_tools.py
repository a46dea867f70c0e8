"""Tools through the official client: offered, called, forced, refused; whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from kea.server.config import ServerConfig
from kea.server.openai.tools import plan_tools
from kea.server.wire.chat import FunctionTool
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import ChatTokenizer, serving

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "weather?"}]
CITY: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock"}},
]
CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oban"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


async def test_the_model_sees_the_tools_and_its_calls_are_read() -> None:
    async with serving(FakeEngine(scripted(CALLS))) as running:
        reply = await running.openai.chat.completions.create(model="fake", messages=ASK, tools=TOOLS)
        choice = reply.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        calls = choice.message.tool_calls or []
        found = [(call.function.name, call.function.arguments) for call in calls if call.type == "function"]
        assert found == [("weather", '{"city": "Oban"}'), ("clock", "{}")]
        assert len({call.id for call in calls}) == 2
        assert all(call.id.startswith("call_") for call in calls)
        assert running.engine.record.prompts[0].startswith("<tools>['weather', 'clock']<end>")


async def test_calls_are_streamed_by_name_and_then_by_pieces_of_arguments() -> None:
    async with serving(FakeEngine(scripted(CALLS), chunk_tokens=3)) as running:
        pieces = await running.openai.chat.completions.create(model="fake", messages=ASK, tools=TOOLS, stream=True)
        names: dict[int, str] = {}
        arguments: dict[int, list[str]] = {}
        text, reason = "", None
        async for piece in pieces:
            choice = piece.choices[0]
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                if call.id is not None:
                    assert call.function.name is not None
                    names[call.index] = call.function.name
                if call.function.arguments:
                    arguments.setdefault(call.index, []).append(call.function.arguments)
        assert (text, reason, names) == ("Let me look.", "tool_calls", {0: "weather", 1: "clock"})
        assert {idx: "".join(parts) for idx, parts in arguments.items()} == {0: '{"city": "Oban"}', 1: "{}"}
        assert len(arguments[0]) > 1, "the arguments came in pieces"


async def test_results_of_tools_go_back_to_the_model() -> None:
    async with serving(FakeEngine(scripted("Rain."))) as running:
        function = {"name": "weather", "arguments": '{"city": "Oban"}'}
        call: Any = {"id": "call_1", "type": "function", "function": function}
        messages: list[ChatCompletionMessageParam] = [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        reply = await running.openai.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
        assert reply.choices[0].message.content == "Rain."
        written = '<tool_call>{"name": "weather", "arguments": {"city": "Oban"}}</tool_call>'
        assert f"<assistant>{written}<end><tool>rain<end>" in running.engine.record.prompts[0]


async def test_only_one_call_when_they_may_not_be_parallel() -> None:
    async with serving(FakeEngine(scripted(CALLS))) as running:
        reply = await running.openai.chat.completions.create(
            model="fake", messages=ASK, tools=TOOLS, parallel_tool_calls=False
        )
        assert len(reply.choices[0].message.tool_calls or []) == 1


async def test_none_offers_no_tools() -> None:
    async with serving(FakeEngine(scripted(CALLS))) as running:
        reply = await running.openai.chat.completions.create(
            model="fake", messages=ASK, tools=TOOLS, tool_choice="none"
        )
        assert reply.choices[0].message.tool_calls is None
        assert reply.choices[0].message.content == CALLS
        assert "<tools>" not in running.engine.record.prompts[0]


async def test_required_forces_a_list_of_calls() -> None:
    output = '[{"name": "weather", "parameters": {"city": "Oban"}}]'
    async with serving(FakeEngine(scripted(output)), tokenizer=ChatTokenizer(style="plain")) as running:
        reply = await running.openai.chat.completions.create(
            model="fake", messages=ASK, tools=TOOLS, tool_choice="required"
        )
        calls = reply.choices[0].message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
            ("weather", '{"city": "Oban"}')
        ]
        assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("tool_calls", None)
        constraint = running.engine.record.options[0].constraint
        assert constraint is not None
        schema = json.loads(constraint.source)
        assert (schema["type"], schema["minItems"]) == ("array", 1)
        assert [item["properties"]["name"]["enum"] for item in schema["items"]["anyOf"]] == [["weather"], ["clock"]]


async def test_a_named_tool_is_forced_and_its_output_is_the_arguments() -> None:
    async with serving(FakeEngine(scripted('{"city": "Oban"}'))) as running:
        choice: Any = {"type": "function", "function": {"name": "weather"}}
        reply = await running.openai.chat.completions.create(
            model="fake", messages=ASK, tools=TOOLS, tool_choice=choice
        )
        calls = reply.choices[0].message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
            ("weather", '{"city": "Oban"}')
        ]
        constraint = running.engine.record.options[0].constraint
        assert constraint is not None
        assert json.loads(constraint.source) == CITY


async def test_special_tokens_are_shown_to_parsers_that_read_them() -> None:
    config = ServerConfig(port=0, tool_call_parser="mistral")
    engine, tokenizer = FakeEngine(scripted('[TOOL_CALLS]clock{"a": 1}')), ChatTokenizer(hidden=["[TOOL_CALLS]"])
    async with serving(engine, config, tokenizer=tokenizer) as running:
        reply = await running.openai.chat.completions.create(model="fake", messages=ASK, tools=TOOLS)
        calls = reply.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == ["clock"]
        assert len(calls[0].id) == 9, "Mistral's templates take ids of nine characters only"
        await running.openai.chat.completions.create(model="fake", messages=ASK)
        assert [options.skip_special_tokens for options in running.engine.record.options] == [False, True]


async def test_harmony_puts_schemas_into_the_final_channel() -> None:
    config = ServerConfig(port=0, tool_call_parser="harmony", reasoning_parser="harmony")
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>four"
    async with serving(FakeEngine(scripted(text, '{"a": 1}')), config) as running:
        create = running.openai.chat.completions.create
        message = (await create(model="fake", messages=ASK)).choices[0].message
        assert (message.content, message.model_extra) == ("four", {"reasoning_content": "hm"})
        message = (await create(model="fake", messages=ASK, response_format={"type": "json_object"})).choices[0].message
        assert message.content == '{"a": 1}'
        assert running.engine.record.prompts[1].endswith("<assistant><|channel|>final<|message|>")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("hermes", {"tool_choice": "required"}, "tool_choice"),
    ("hermes", {"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ("hermes", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ("hermes", {"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ("hermes", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ("hermes", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    (
        "hermes",
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        "response_format",
    ),
    ("hermes", {"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
    ("hermes", {"messages": [{"role": "user", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}]}, "tool_calls"),
    (
        "hermes",
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "["}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ("none", {"tools": TOOLS}, "tools"),
    ("plain", {"tools": TOOLS}, "tools"),
]


@pytest.mark.parametrize(("style", "change", "param"), WRONG)
async def test_wrong_tools_are_refused_by_name(style: str, change: dict[str, Any], param: str) -> None:
    async with serving(tokenizer=ChatTokenizer(style=style)) as running:
        response = await running.http.post("/v1/chat/completions", json={"messages": ASK, **change})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"].endswith(param)


async def test_definitions_of_schemas_keep_their_references() -> None:
    parameters = {"$defs": {"P": {"type": "integer"}}, "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}}
    tools = [FunctionTool(name="f", parameters=parameters), FunctionTool(name="g", parameters=parameters)]
    async with serving() as running:
        plan = plan_tools(running.state.model, tools, "required", is_parallel=False)
        assert plan.constraint is not None
        schema = json.loads(plan.constraint.source)
        assert schema["$defs"] == {"f.P": {"type": "integer"}, "g.P": {"type": "integer"}}
        assert schema["maxItems"] == 1
        refs = [item["properties"]["parameters"]["properties"]["p"]["$ref"] for item in schema["items"]["anyOf"]]
        assert refs == ["#/$defs/f.P", "#/$defs/g.P"]
