"""/v1/completions through the official client, sync, async and streaming, over a real socket."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from kea.types import GenerateOptions, Speculation
from tests.fakes.engine import FakeEngine, scripted
from tests.fakes.tokenizer import BOS_ID
from tests.server.support import ChatTokenizer, Live, serving, serving_on_a_thread


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving_on_a_thread() as live:
        yield live


async def test_a_prompt_is_continued() -> None:
    async with serving(FakeEngine(scripted("four"))) as running:
        reply = await running.openai.completions.create(model="fake", prompt="2 + 2 =")
        assert reply.object == "text_completion"
        assert reply.model == "fake"
        choice = reply.choices[0]
        assert (choice.text, choice.finish_reason, choice.index, choice.logprobs) == ("four", "stop", 0, None)
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (8, 4, 12)
        assert reply.usage.prompt_tokens_details is not None
        assert reply.usage.prompt_tokens_details.cached_tokens == 0
        assert running.engine.record.options[0].stopping.max_tokens == 16


def test_the_sync_client_works() -> None:
    async def main() -> None:
        async with serving(FakeEngine(scripted("four"))) as running:
            await asyncio.to_thread(use_sync_client, running.url)

    asyncio.run(main())


def use_sync_client(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert client.completions.create(model="fake", prompt="x").choices[0].text == "four"
        pieces = client.completions.create(model="fake", prompt="x", stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "four"
        stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == "four"
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").id == "fake"


async def test_a_stream_has_pieces_a_reason_and_the_usage() -> None:
    async with serving(FakeEngine(scripted("one two three"))) as running:
        stream = await running.openai.completions.create(
            model="fake", prompt="x", max_tokens=50, stream=True, stream_options={"include_usage": True}
        )
        pieces = [piece async for piece in stream]
        assert "".join(piece.choices[0].text for piece in pieces[:-1]) == "one two three"
        assert [piece.choices[0].finish_reason for piece in pieces[:-1]][-1] == "stop"
        assert len(pieces) > 3
        assert {piece.id for piece in pieces} == {pieces[0].id}
        assert pieces[-1].choices == []
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == 13
        assert all(piece.usage is None for piece in pieces[:-1])


async def test_prompts_come_in_four_forms() -> None:
    async with serving(FakeEngine(lambda prompt, _: prompt.upper())) as running:
        create = running.openai.completions.create
        forms: list[tuple[Any, list[str]]] = [
            ("ab", ["AB"]),
            (["ab", "cd"], ["AB", "CD"]),
            ([97, 98], ["AB"]),
            ([[97, 98], [99]], ["AB", "C"]),
        ]
        for prompt, texts in forms:
            reply = await create(model="fake", prompt=prompt, max_tokens=10)
            assert [choice.text for choice in reply.choices] == texts
            assert [choice.index for choice in reply.choices] == list(range(len(texts)))
        assert running.engine.record.token_ids[0] == (BOS_ID, 97, 98)
        assert (97, 98) in running.engine.record.token_ids, "ids are taken as they are"


async def test_choices_are_forks_of_one_prompt() -> None:
    async with serving(FakeEngine(scripted("a", "b", "c", "d"))) as running:
        reply = await running.openai.completions.create(model="fake", prompt=["x", "y"], n=2, seed=7)
        assert sorted(choice.text for choice in reply.choices) == ["a", "b", "c", "d"]
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 4)
        assert len(running.engine.record.specs) == 2, "a context per prompt, forks for the rest"
        assert sorted(options.sampling.seed or 0 for options in running.engine.record.options) == [7, 7, 8, 8]


async def test_a_stream_of_choices_keeps_them_apart() -> None:
    async with serving(FakeEngine(scripted("aaaaaaaaaa", "bbbbbbbbbb"))) as running:
        texts = {0: "", 1: ""}
        async for piece in await running.openai.completions.create(model="fake", prompt="x", n=2, stream=True):
            texts[piece.choices[0].index] += piece.choices[0].text
        assert sorted(texts.values()) == ["aaaaaaaaaa", "bbbbbbbbbb"]


async def test_every_field_reaches_the_engine() -> None:
    async with serving() as running:
        await running.openai.completions.create(
            model="fake",
            prompt="x",
            max_tokens=9,
            temperature=0.5,
            top_p=0.25,
            presence_penalty=1.5,
            frequency_penalty=-1,
            logit_bias={"97": 5},
            seed=-3,
            stop=["\n", "END"],
            logprobs=2,
            extra_body={
                "top_k": 40,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "min_tokens": 2,
                "ignore_eos": True,
                "stop_token_ids": [98],
                "priority": -4,
                "prompt_logprobs": 1,
                "structured_outputs": {"regex": "[a-z]+"},
                "skip_special_tokens": False,
                "speculative_config": {"num_speculative_tokens": 5, "prompt_lookup_max": 3},
            },
        )
        options: GenerateOptions = running.engine.record.options[0]
        sampling, stopping = options.sampling, options.stopping
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 40, 0.1)
        assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.5, -1, 1.1)
        assert (dict(sampling.logit_bias), sampling.seed) == ({97: 5}, 2**63 - 3)
        assert (stopping.max_tokens, stopping.min_tokens, stopping.ignore_eos) == (9, 2, True)
        assert (stopping.stop, stopping.stop_token_ids) == (("\n", "END"), (98,))
        assert options.constraint is not None
        assert (options.constraint.kind, options.constraint.source, options.logprobs) == ("regex", "[a-z]+", 2)
        assert not options.skip_special_tokens
        assert options.speculation == Speculation(5, 2, 3)
        spec = running.engine.record.specs[0]
        assert (spec.priority, spec.prompt_logprobs, spec.tenant) == (-4, 1, "")


@pytest.mark.parametrize(
    ("extra", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}},
            "json_schema",
            None,
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "grammar", "start: /a/"),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ],
)
async def test_structured_output_becomes_a_constraint(extra: dict[str, Any], kind: str, source: str | None) -> None:
    async with serving() as running:
        await running.openai.completions.create(model="fake", prompt="x", extra_body=extra)
        constraint = running.engine.record.options[0].constraint
        assert constraint is not None
        assert constraint.kind == kind
        assert source is None or constraint.source == source


async def test_a_stop_string_ends_the_text() -> None:
    async with serving(FakeEngine(scripted("one. two. three"))) as running:
        reply = await running.openai.completions.create(model="fake", prompt="x", stop=".")
        assert reply.choices[0].text == "one"
        assert reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].model_extra == {"stop_reason": "."}
        reply = await running.openai.completions.create(model="fake", prompt="x", max_tokens=3)
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("one", "length")


async def test_logprobs_are_parallel_lists() -> None:
    async with serving(FakeEngine(scripted("ab"))) as running:
        reply = await running.openai.completions.create(model="fake", prompt="x", logprobs=2)
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["a", "b"]
        assert logprobs.token_logprobs == [-0.5, -0.5]
        assert logprobs.top_logprobs == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]
        assert logprobs.text_offset == [0, 1]


async def test_echo_shows_the_prompt_and_its_logprobs() -> None:
    async with serving(FakeEngine(scripted("ab"))) as running:
        reply = await running.openai.completions.create(model="fake", prompt="xy", echo=True, logprobs=1)
        assert reply.choices[0].text == "xyab"
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["", "x", "y", "a", "b"]
        assert logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
        scored = await running.openai.completions.create(model="fake", prompt="xy", echo=True, logprobs=1, max_tokens=0)
        assert scored.choices[0].text == "xy"
        assert scored.choices[0].logprobs is not None
        assert scored.choices[0].logprobs.tokens == ["", "x", "y"]


async def test_prompt_logprobs_are_told() -> None:
    async with serving(FakeEngine(scripted("a"))) as running:
        body = {"model": "fake", "prompt": "xy", "prompt_logprobs": 2, "n": 2}
        reply = (await running.http.post("/v1/completions", json=body)).json()
        told = reply["choices"][0]["prompt_logprobs"]
        assert told[0] is None
        assert told[1] == {
            "120": {"logprob": -0.5, "rank": 1, "decoded_token": "x"},
            "121": {"logprob": -1.5, "rank": 2, "decoded_token": "y"},
        }


async def test_impossible_tokens_have_a_logprob_that_json_can_hold() -> None:
    from kea.server.openai.logprobs import finite

    assert finite(-math.inf) == -9999.0
    assert finite(-1.0) == -1.0


async def test_long_prompts_are_tokenised_and_refused_with_their_length() -> None:
    async with serving(FakeEngine(max_model_len=100)) as running:
        with pytest.raises(openai.BadRequestError) as caught:
            await running.openai.completions.create(model="fake", prompt="x" * 30_000)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "prompt"
        assert "30001" in caught.value.message


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [99_999_999]}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 1e9}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 100}, "stop"),
    ({"stop_token_ids": [99_999_999]}, "stop_token_ids"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 2, "prompt": ["a"] * 1000}, "prompt"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"include_stop_str_in_output": True, "stop_token_ids": [5]}, "include_stop_str_in_output"),
    ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "include_stop_str_in_output"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"audio": {}}, "audio"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_*"),
    ({"guided_choice": []}, "structured_outputs.choice"),
    ({"lora_request": {"name": "x"}}, "lora_request"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"service_tier": "flex"}, "service_tier"),
]


@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_refused_by_name(live: Live, change: dict[str, Any], param: str) -> None:
    status, error = live.refusal("/v1/completions", {"model": "fake", "prompt": "x", **change})
    assert status == 400, error
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "extra",
    [
        {"best_of": 1},
        {"suffix": None},
        {"suffix": ""},
        {"service_tier": "auto"},
        {"user": "me"},
        {"temperature": None, "max_tokens": None, "stop": None, "logprobs": None, "n": None, "stream": None},
    ],
)
async def test_neutral_fields_are_accepted(extra: dict[str, Any]) -> None:
    async with serving() as running:
        response = await running.http.post("/v1/completions", json={"model": "fake", "prompt": "x", **extra})
        assert response.status_code == 200, response.text
        assert "x-kea-ignored-fields" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_accepted_and_named(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kea.server")
    guesses = {"num_speculative_tokens": 0, "lookup_least": 2}
    body = {"prompt": "x", "stream": stream, "temprature": 0.1, "a\r\nb": {"c": [1]}, "user": "me"}
    body["speculative_config"] = guesses
    async with serving() as running:
        response = await running.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-kea-ignored-fields"] == "temprature, ?, speculative_config.lookup_least"
        assert (
            "/v1/completions ignores the fields temprature, ?, speculative_config.lookup_least of request"
            in caplog.text
        )
        assert "POST /v1/completions: 200 in " in caplog.text


async def test_a_text_that_cannot_fit_is_refused_unread() -> None:
    class Unread(ChatTokenizer):
        def encode(self, text: str, **options: Any) -> list[int]:
            assert len(text) <= 500_000, "it was tokenised"
            return super().encode(text, **options)

    tokenizer = Unread()
    async with serving(FakeEngine(tokenizer=tokenizer, max_model_len=100), tokenizer=tokenizer) as running:
        long = "x" * 500_001
        for path, body, param in (
            ("completions", {"prompt": long}, "prompt"),
            ("chat/completions", {"messages": [{"role": "user", "content": long}]}, "messages"),
            ("responses", {"input": long}, "input"),
        ):
            error = (await running.http.post(f"/v1/{path}", json=body)).json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", param), error
            assert re.search(r"50000\d characters", error["message"])  # with the names of roles


async def test_a_whole_number_may_be_written_as_a_float() -> None:
    async with serving(FakeEngine(scripted("a" * 9))) as running:
        body = {"prompt": "x", "max_tokens": 2.0, "n": 1.0, "seed": 1e3}
        response = await running.http.post("/v1/completions", json=body)
        assert response.json()["usage"]["completion_tokens"] == 2
        response = await running.http.post("/v1/completions", json={**body, "max_tokens": 2.5})
        assert response.json()["error"]["param"] == "max_tokens"


async def test_models_are_served_under_their_names_only() -> None:
    async with serving() as running:
        with pytest.raises(openai.NotFoundError) as caught:
            await running.openai.completions.create(model="fake:my-adapter", prompt="x")
        assert caught.value.param == "model"
        assert "LoRA" in caught.value.message
        response = await running.http.post("/v1/completions", json={"prompt": "x"})
        assert response.json()["model"] == "fake"


async def test_tokenise_and_back() -> None:
    async with serving(tokenizer=ChatTokenizer()) as running:
        post = running.http.post
        told = (await post("/tokenize", json={"prompt": "ab", "return_token_strs": True})).json()
        assert told == {"count": 3, "max_model_len": 4096, "tokens": [BOS_ID, 97, 98], "token_strs": ["", "a", "b"]}
        bare = (await post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})).json()
        assert bare["tokens"] == [97, 98]
        chat = (await post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})).json()
        back = (await post("/detokenize", json={"tokens": chat["tokens"]})).json()
        assert back == {"prompt": "<user>hi<end><assistant>"}
        assert (await post("/tokenize", json={})).json()["error"]["param"] == "prompt"
        assert (await post("/detokenize", json={"tokens": [99_999_999]})).json()["error"]["param"] == "tokens"
        refused = await post("/v1/embeddings", json={"input": "x", "model": "fake"})
        assert refused.status_code == 404
        assert "embeddings" in refused.json()["error"]["message"]
