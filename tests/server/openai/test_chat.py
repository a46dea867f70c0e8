"""/v1/chat/completions through the official client: turns, streams, choices, logprobs, schemas, reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from pydantic import BaseModel

from kea.server.config import ServerConfig
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import ChatTokenizer, Live, Serving, serving, serving_on_a_thread

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving_on_a_thread(tokenizer=ChatTokenizer(style="plain")) as live:
        yield live


async def stream(running: Serving, **options: Any) -> list[ChatCompletionChunk]:
    pieces = await running.openai.chat.completions.create(model="fake", messages=HELLO, stream=True, **options)
    return [piece async for piece in pieces]


async def test_a_conversation_is_continued() -> None:
    async with serving(FakeEngine(scripted("Hi there."))) as running:
        reply = await running.openai.chat.completions.create(
            model="fake",
            messages=[
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d", "name": "me"},
            ],
        )
        prompt = "<system>Be kind.<end><user>a\nb<end><assistant>c<end><user>d<end><assistant>"
        assert running.engine.record.prompts == [prompt]
        choice = reply.choices[0]
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hi there.", "stop")
        assert choice.message.tool_calls is None
        assert reply.object == "chat.completion"
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), 9)
        assert running.engine.record.options[0].stopping.max_tokens == 4096 - len(prompt)


async def test_a_stream_begins_with_the_role_and_ends_with_a_reason() -> None:
    async with serving(FakeEngine(scripted("Hi there."))) as running:
        pieces = await stream(running, stream_options={"include_usage": True})
        first, last, usage = pieces[0].choices[0], pieces[-2].choices[0], pieces[-1]
        assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
        assert (last.finish_reason, last.delta.content) == ("stop", None)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == "Hi there."
        assert usage.choices == []
        assert usage.usage is not None
        assert usage.usage.completion_tokens == 9
        assert {piece.id for piece in pieces} == {first_id(pieces)}


def first_id(pieces: list[ChatCompletionChunk]) -> str:
    assert pieces[0].id.startswith("chatcmpl-")
    return pieces[0].id


async def test_the_clients_own_stream_helper_reads_it() -> None:
    async with (
        serving(FakeEngine(scripted("Hi there."))) as running,
        running.openai.chat.completions.stream(model="fake", messages=HELLO) as events,
    ):
        final = await events.get_final_completion()
        assert final.choices[0].message.content == "Hi there."
        assert final.choices[0].finish_reason == "stop"


async def test_choices_share_one_prompt() -> None:
    async with serving(FakeEngine(scripted("a", "b", "c"))) as running:
        reply = await running.openai.chat.completions.create(model="fake", messages=HELLO, n=3)
        assert sorted(choice.message.content or "" for choice in reply.choices) == ["a", "b", "c"]
        assert len(running.engine.record.specs) == 1
        pieces = await stream(running, n=2)
        assert {piece.choices[0].index for piece in pieces} == {0, 1}
        roles = [piece.choices[0].index for piece in pieces if piece.choices[0].delta.role]
        assert sorted(roles) == [0, 1]


async def test_logprobs_are_told_whole_and_in_pieces() -> None:
    async with serving(FakeEngine(scripted("né"))) as running:
        reply = await running.openai.chat.completions.create(
            model="fake", messages=HELLO, logprobs=True, top_logprobs=2
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [entry.token for entry in logprobs.content] == ["n", "é"]
        assert logprobs.content[1].bytes == [0xC3, 0xA9]
        assert [top.logprob for top in logprobs.content[0].top_logprobs] == [-0.5, -1.5]
        pieces = await stream(running, logprobs=True)
        found = [entry.token for piece in pieces if (lp := piece.choices[0].logprobs) for entry in lp.content or []]
        assert found == ["n", "é"]


async def test_limits_of_the_output_have_two_names() -> None:
    async with serving(FakeEngine(scripted("abcdef"))) as running:
        create = running.openai.chat.completions.create
        reply = await create(model="fake", messages=HELLO, max_tokens=2)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("ab", "length")
        reply = await create(model="fake", messages=HELLO, max_completion_tokens=3)
        assert reply.choices[0].message.content == "abc"


async def test_an_output_can_be_parsed_into_a_model() -> None:
    class Bird(BaseModel):
        name: str

    async with serving(FakeEngine(scripted('{"name": "kea"}'))) as running:
        reply = await running.openai.chat.completions.parse(model="fake", messages=HELLO, response_format=Bird)
        assert reply.choices[0].message.parsed == Bird(name="kea")
        constraint = running.engine.record.options[0].constraint
        assert constraint is not None
        assert constraint.kind == "json_schema"
        assert json.loads(constraint.source)["properties"] == {"name": {"title": "Name", "type": "string"}}


async def test_reasoning_is_kept_apart() -> None:
    engine = FakeEngine(scripted("<think>2 and 2</think>\n\nfour"))
    async with serving(engine, ServerConfig(port=0, reasoning_parser="think")) as running:
        reply = await running.openai.chat.completions.create(model="fake", messages=HELLO)
        message = reply.choices[0].message
        assert message.content == "four"
        assert message.model_extra == {"reasoning_content": "2 and 2"}
        pieces = await stream(running)
        deltas = [piece.choices[0].delta for piece in pieces]
        assert "".join(delta.content or "" for delta in deltas) == "four"
        assert "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas) == "2 and 2"
        bare = await running.openai.chat.completions.create(
            model="fake", messages=HELLO, extra_body={"include_reasoning": False}
        )
        assert bare.choices[0].message.model_extra == {}


async def test_effort_goes_to_templates_that_read_it() -> None:
    async with serving(tokenizer=ChatTokenizer(style="think")) as running:
        create = running.openai.chat.completions.create
        await create(model="fake", messages=HELLO, reasoning_effort="none")
        await create(model="fake", messages=HELLO, reasoning_effort="high")
        await create(model="fake", messages=HELLO, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        ends = [prompt.endswith("<think></think>") for prompt in running.engine.record.prompts]
        assert ends == [True, False, True]


async def test_prompt_logprobs_are_told_beside_the_choices() -> None:
    async with serving() as running:
        body = {"model": "fake", "messages": HELLO, "prompt_logprobs": 0}
        reply = (await running.http.post("/v1/chat/completions", json=body)).json()
        assert reply["prompt_logprobs"][0] is None
        assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "audio"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"stream_options": {}}, "stream_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"verbosity": "low"}, "verbosity"),
    ({"prompt": "x"}, "prompt"),
    ({"chat_template": "x"}, "chat_template"),
    ({"continue_final_message": True}, "continue_final_message"),
]


@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_refused_by_name(live: Live, change: dict[str, Any], param: str) -> None:
    status, error = live.refusal("/v1/chat/completions", {"model": "fake", "messages": HELLO, **change})
    assert status == 400, error
    assert error["param"].endswith(param)


async def test_a_model_without_a_template_refuses_to_chat() -> None:
    async with serving(tokenizer=ChatTokenizer(chat=False)) as running:
        response = await running.http.post("/v1/chat/completions", json={"messages": HELLO})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported"


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
async def test_a_message_without_content_is_refused(role: str) -> None:
    async with serving() as running:
        for message in ({"role": role}, {"role": role, "content": None}):
            body = {"model": "fake", "messages": [*HELLO, message]}
            response = await running.http.post("/v1/chat/completions", json=body)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[1].content")
