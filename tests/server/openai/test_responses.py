"""/v1/responses through the official client: items, events, the background, what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from kea.errors import EngineDied, EngineFault, InvalidRequest
from kea.server.config import ApiKey, Limits, ServerConfig
from kea.server.openai.response_store import ResponseStore
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import Live, Serving, serving, serving_on_a_thread

THINKING = ServerConfig(port=0, reasoning_parser="think")
TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
CALLS = '<think>hm</think>Look: <tool_call>{"name": "weather", "arguments": {"city": "Oban"}}</tool_call>'


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving_on_a_thread() as live:
        yield live


async def events_of(running: Serving, **options: Any) -> list[ResponseStreamEvent]:
    stream = await running.openai.responses.create(model="fake", stream=True, **options)
    return [event async for event in stream]


async def test_an_input_is_answered() -> None:
    async with serving(FakeEngine(scripted("Hi there."))) as running:
        response = await running.openai.responses.create(
            model="fake", input="hello", instructions="Be kind.", metadata={"a": "b"}, max_output_tokens=50
        )
        assert response.output_text == "Hi there."
        assert (response.status, response.model, response.metadata) == ("completed", "fake", {"a": "b"})
        assert response.output[0].type == "message"
        assert response.output[0].status == "completed"
        prompt = "<system>Be kind.<end><user>hello<end><assistant>"
        assert running.engine.record.prompts == [prompt]
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == (len(prompt), 9)
        assert running.engine.record.options[0].stopping.max_tokens == 50


async def test_events_come_in_openais_order() -> None:
    async with serving(FakeEngine(scripted(CALLS)), THINKING) as running:
        events = await events_of(running, input="hello", tools=TOOLS)
        kinds = [event.type for event in events]
        assert [kind for idx, kind in enumerate(kinds) if kind != kinds[idx - 1]] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == ["reasoning", "message", "function_call"]
        assert last.response.output_text == "Look:"
        call = last.response.output[2]
        assert call.type == "function_call"
        assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Oban"}', "completed")
        reasoning = last.response.output[0]
        assert reasoning.type == "reasoning"
        assert reasoning.content is not None
        assert reasoning.content[0].text == "hm"
        assert last.response.usage is not None
        assert last.response.usage.output_tokens_details.reasoning_tokens == 2


async def test_the_clients_own_stream_helper_reads_it() -> None:
    async with (
        serving(FakeEngine(scripted("Hi there."))) as running,
        running.openai.responses.stream(model="fake", input="x") as stream,
    ):
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == "Hi there."
        assert len(deltas) > 1
        assert (await stream.get_final_response()).output_text == "Hi there."


def shown(response: Response) -> list[dict[str, Any]]:
    return [item.model_dump(exclude_none=True) for item in response.output]


async def test_a_conversation_goes_on_by_items_or_by_id() -> None:
    async with serving(FakeEngine(scripted(CALLS, "Rain.", "Rain.")), THINKING) as running:
        create = running.openai.responses.create
        first = await create(model="fake", input="weather?", tools=TOOLS, instructions="Be brief.")
        call = first.output[2]
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        by_id = await create(model="fake", input=[result], tools=TOOLS, previous_response_id=first.id)
        items: Any = [{"role": "user", "content": "weather?"}, *shown(first), result]
        by_items = await create(model="fake", input=items, tools=TOOLS)
        assert by_id.output_text == by_items.output_text == "Rain."
        prompts = running.engine.record.prompts
        assert prompts[1] == prompts[2], "the same conversation, without the instructions of the first"
        assert prompts[1].endswith(
            '<assistant>Look:<tool_call>{"name": "weather", "arguments": {"city": "Oban"}}</tool_call><end>'
            "<tool>rain<end><assistant>"
        )
        third = await create(model="fake", input="thanks", previous_response_id=by_id.id)
        assert third.previous_response_id == by_id.id
        assert "<assistant>Rain.<end><user>thanks<end>" in running.engine.record.prompts[3]


async def test_forms_are_enforced() -> None:
    async with serving(FakeEngine(scripted('{"a": 1}'))) as running:
        schema: Any = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
        response = await running.openai.responses.create(model="fake", input="x", text={"format": schema})
        assert response.output_text == '{"a": 1}'
        constraint = running.engine.record.options[0].constraint
        assert constraint is not None
        assert (constraint.kind, constraint.source) == ("json_schema", '{"type": "object"}')
        forced = await running.openai.responses.create(
            model="fake", input="x", tools=TOOLS, tool_choice={"type": "function", "name": "weather"}
        )
        call = forced.output[0]
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("weather", '{"a": 1}')


async def test_logprobs_are_told_when_they_are_included() -> None:
    async with serving(FakeEngine(scripted("ab"))) as running:
        response = await running.openai.responses.create(
            model="fake", input="x", include=["message.output_text.logprobs"], top_logprobs=1
        )
        message = response.output[0]
        assert message.type == "message"
        part = message.content[0]
        assert part.type == "output_text"
        assert [entry.token for entry in part.logprobs or []] == ["a", "b"]


async def test_an_output_that_is_cut_is_incomplete() -> None:
    async with serving(FakeEngine(scripted("abcdef"))) as running:
        response = await running.openai.responses.create(model="fake", input="x", max_output_tokens=3)
        assert (response.status, response.output_text) == ("incomplete", "abc")
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        events = await events_of(running, input="x", max_output_tokens=3)
        assert events[-1].type == "response.incomplete"


async def test_failures_are_told_whole_and_in_streams() -> None:
    engine = FakeEngine(scripted("a long enough text"))
    async with serving(engine) as running:
        engine.fail_next(EngineFault("broke"), after_tokens=4)
        with pytest.raises(openai.InternalServerError, match="broke"):
            await running.openai.responses.create(model="fake", input="x")
        engine.fail_next(EngineFault("broke"), after_tokens=4)
        last = (await events_of(running, input="x"))[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.message == "broke"
        engine.fail_next(EngineDied("gone"), after_tokens=4)
        response = await running.openai.responses.create(model="fake", input="x")
        assert response.output_text == "a long enough text", "nothing was sent yet, so it ran again"


async def test_responses_are_stored_for_their_tenant() -> None:
    keys = (ApiKey("a", "secret-of-a"), ApiKey("b", "secret-of-b"))
    config = ServerConfig(port=0, api_keys=keys)
    async with serving(FakeEngine(scripted("Hi.")), config, api_key="secret-of-a") as running:
        responses = running.openai.responses
        made = await responses.create(model="fake", input="x")
        assert await responses.retrieve(made.id) == made
        other = running.openai.with_options(api_key="secret-of-b")
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await other.responses.create(model="fake", input="x", previous_response_id=made.id)
        assert caught.value.param == "previous_response_id"
        await responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await responses.retrieve(made.id)
        hidden = await responses.create(model="fake", input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            await responses.retrieve(hidden.id)


async def until_ended(running: Serving, response_id: str) -> Response:
    async with asyncio.timeout(5):
        while True:
            response = await running.openai.responses.retrieve(response_id)
            if response.status not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.01)


async def test_a_response_runs_in_the_background() -> None:
    async with serving(FakeEngine(scripted("Hi."))) as running:
        running.engine.hold()
        made = await running.openai.responses.create(model="fake", input="x", background=True)
        assert made.status == "queued"
        with pytest.raises(openai.ConflictError):
            await running.openai.responses.create(model="fake", input="y", previous_response_id=made.id)
        running.engine.release()
        done = await until_ended(running, made.id)
        assert (done.status, done.output_text) == ("completed", "Hi.")
        again = await running.openai.responses.cancel(made.id)
        assert again.status == "completed"


async def test_a_response_in_the_background_is_cancelled() -> None:
    async with serving(FakeEngine(scripted("Hi."))) as running:
        running.engine.hold()
        made = await running.openai.responses.create(model="fake", input="x", background=True)
        assert (await running.openai.responses.cancel(made.id)).status == "cancelled"
        assert (await running.openai.responses.retrieve(made.id)).status == "cancelled"
        await running.until_idle()
        plain = await running.http.post("/v1/responses", json={"input": "x", "background": True, "store": False})
        assert plain.json()["error"]["param"] == "store"


async def test_a_stream_from_the_background_can_be_read_again_from_any_event() -> None:
    async with serving(FakeEngine(scripted("one two three"))) as running:
        running.engine.hold()
        stream = await running.openai.responses.create(model="fake", input="x", background=True, stream=True)
        first = await anext(stream)
        assert first.type == "response.created"
        response_id = first.response.id
        await stream.close()
        running.engine.release()
        assert (await until_ended(running, response_id)).output_text == "one two three"
        again = await running.openai.responses.retrieve(response_id, stream=True, starting_after=1)
        events = [event async for event in again]
        assert [event.sequence_number for event in events] == list(range(2, 2 + len(events)))
        assert events[-1].type == "response.completed"
        plain = await running.openai.responses.create(model="fake", input="x")
        with pytest.raises(openai.BadRequestError):
            await running.openai.responses.retrieve(plain.id, stream=True)
        with pytest.raises(openai.BadRequestError):
            await running.openai.responses.cancel(plain.id)


async def test_a_response_in_the_background_fails_with_its_reason() -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        engine.fail_next(InvalidRequest("The schema is wrong."))
        made = await running.openai.responses.create(model="fake", input="x", background=True)
        done = await until_ended(running, made.id)
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.message == "The schema is wrong."


async def test_a_client_that_leaves_ends_its_response() -> None:
    async with serving() as running:
        running.engine.hold()
        for stream in (False, True):
            body = {"input": "x", "stream": stream}
            asking = asyncio.create_task(running.http.post("/v1/responses", json=body))
            async with asyncio.timeout(5):
                while not running.engine.contexts:  # noqa: ASYNC110 - it notifies nobody
                    await asyncio.sleep(0.005)
            asking.cancel()
            await running.until_idle()
        assert len(running.state.responses) == 2


async def test_the_server_ends_what_runs_in_the_background() -> None:
    async with serving(config=ServerConfig(port=0, shutdown_grace_s=0.05)) as running:
        running.engine.hold()
        made = await running.openai.responses.create(model="fake", input="x", background=True)
        running.server.stop()
        await running.until_idle()
        assert running.state.responses.get("", made.id).reply.status == "cancelled"


async def test_the_store_is_bounded_and_forgets() -> None:
    limits = Limits(max_stored_responses=2)
    async with serving(FakeEngine(scripted("Hi.")), ServerConfig(port=0, limits=limits)) as running:
        made = [await running.openai.responses.create(model="fake", input="x") for _ in range(3)]
        assert len(running.state.responses) == 2
        with pytest.raises(openai.NotFoundError):
            await running.openai.responses.retrieve(made[0].id)
        now = [0.0]
        store = ResponseStore(2, 10.0, lambda: now[0])
        run = running.state.responses.get("", made[2].id)
        store.put("", run)
        store.end(run)
        now[0] = 9.0
        assert store.get("", made[2].id) is run
        now[0] = 11.0
        with pytest.raises(Exception, match="There is no response"):
            store.get("", made[2].id)
        running.engine.hold()
        for _ in range(2):
            await running.openai.responses.create(model="fake", input="x", background=True)
        with pytest.raises(openai.RateLimitError):
            await running.openai.responses.create(model="fake", input="x", background=True)


async def test_who_stores_much_pushes_out_nobody_elses() -> None:
    keys = (ApiKey("a", "secret-of-a"), ApiKey("b", "secret-of-b"))
    config = ServerConfig(port=0, api_keys=keys, limits=Limits(max_stored_responses=3))
    async with serving(FakeEngine(scripted("Hi.")), config, api_key="secret-of-a") as running:
        of_b = running.openai.with_options(api_key="secret-of-b")
        first = await of_b.responses.create(model="fake", input="x")
        many = [await running.openai.responses.create(model="fake", input="x") for _ in range(5)]
        assert (await of_b.responses.retrieve(first.id)).id == first.id
        assert (await running.openai.responses.retrieve(many[-1].id)).id == many[-1].id
        with pytest.raises(openai.NotFoundError):
            await running.openai.responses.retrieve(many[-3].id)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0].name"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "1"}]}, "input[0].arguments"),
    ({"input": [{"type": "reasoning", "content": [{"type": "reasoning_text"}]}]}, "input[0].content"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 99_999}, "max_output_tokens"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ({"conversation": "x"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"effort": "high"}}, "reasoning_effort"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema"}}}, "response_format.json_schema.schema"),
    ({"n": 2}, "n"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"top_logprobs": 99}, "top_logprobs"),
    ({"metadata": {"a": 1}}, "metadata.a"),
]


@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_refused_by_name(live: Live, change: dict[str, Any], param: str) -> None:
    status, error = live.refusal("/v1/responses", {"input": "x", **change})
    assert status in (400, 404), error
    assert error["param"] == param
    assert len(live.running.state.responses) == 0
