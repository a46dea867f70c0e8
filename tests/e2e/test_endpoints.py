"""The endpoints over the real engine and the embedded model: chat, constraints, responses, programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

import kea
from kea.models import embedded_model_path
from tests.e2e.serving import Serving, serving

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(embedded_model_path(), "--num-threads", "1", "--served-model-name", "small") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_chat_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Continue: Once upon a time"}]
    whole = client.chat.completions.create(model="small", messages=messages, max_tokens=20, temperature=0)
    stream = client.chat.completions.create(model="small", messages=messages, max_tokens=20, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 20


def test_a_schema_is_kept_whatever_the_model_would_say(client: openai.OpenAI) -> None:
    for seed in range(5):
        answer = client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": "Extract: Bob is 7."}],
            max_tokens=120,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
        )
        assert answer.choices[0].finish_reason == "stop"
        content = json.loads(answer.choices[0].message.content or "")
        assert set(content) == {"name", "age"}
        assert isinstance(content["age"], int)


def test_choices_and_expressions_are_kept(client: openai.OpenAI) -> None:
    for outputs, pattern in (
        ({"choice": ["red", "green"]}, "red|green"),
        ({"regex": "[0-9]{3}-[a-z]{2}"}, r"\d{3}-[a-z]{2}"),
    ):
        answer = client.completions.create(
            model="small", prompt="Pick one: ", max_tokens=12, extra_body={"structured_outputs": outputs}
        )
        assert re.fullmatch(pattern, answer.choices[0].text)


def test_responses_are_kept_and_retrieved(client: openai.OpenAI) -> None:
    made = client.responses.create(model="small", input="Tell a story.", max_output_tokens=16, temperature=0)
    assert client.responses.retrieve(made.id).output_text == made.output_text


@kea.function(temperature=0.0)
def begin(hero: kea.Input, story: kea.Output(max_tokens=16)):  # type: ignore[no-untyped-def, valid-type]
    """Once upon a time there was a {{hero}}.{{story}}"""


@kea.function(temperature=0.0)
def finish(stories: kea.Input, end: kea.Output(max_tokens=16)):  # type: ignore[no-untyped-def, valid-type]
    """{{stories}} In the end{{end}}"""


def test_a_program_gives_the_same_embedded_and_served(server: Serving) -> None:
    ends = []
    for url in (None, server.url):
        with kea.connect(url) if url else kea.connect(num_threads=1) as session:
            ends.append(finish([begin(hero) for hero in ("dog", "cat", "bird")]).get())
            assert [row.state.value for row in session.timeline()] == ["done"] * 4
    assert ends[0]
    assert ends[0] == ends[1]


def test_nothing_is_left_behind(server: Serving) -> None:
    assert server.metric("kea:num_requests_running") == 0
    assert server.metric("kea:kv_cache_usage_perc") == 0
