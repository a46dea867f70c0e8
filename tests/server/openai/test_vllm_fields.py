"""Fields that vLLM has beside OpenAI's: those that are served, and what a refusal tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kea.types import Constraint
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import Live, serving, serving_on_a_thread


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving_on_a_thread() as live:
        yield live


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bad_words": ["x"]}, "logit_bias of -100"),
        ({"allowed_token_ids": [1]}, "structured_outputs"),
        ({"use_beam_search": True}, "n gives several outputs"),
    ],
)
def test_a_refusal_tells_what_to_send_instead(live: Live, change: dict[str, Any], told: str) -> None:
    _, error = live.refusal("/v1/completions", {"model": "fake", "prompt": "x", **change})
    assert told in error["message"]


@pytest.mark.parametrize(
    ("guided", "constraint"),
    [
        ({"guided_json": {"type": "object"}}, Constraint("json_schema", '{"type": "object"}')),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, Constraint("choice", '["a", "b"]')),
        ({"guided_grammar": "start: /a/"}, Constraint("grammar", "start: /a/")),
    ],
)
async def test_the_older_names_of_structured_outputs(guided: dict[str, Any], constraint: Constraint) -> None:
    async with serving(FakeEngine(scripted("a"))) as running:
        response = await running.http.post("/v1/completions", json={"prompt": "x", **guided})
        assert response.status_code == 200, response.text
        assert "x-kea-ignored-fields" not in response.headers
        assert running.engine.record.options[0].constraint == constraint


@pytest.mark.parametrize("stream", [False, True])
async def test_the_stop_string_may_stand_in_the_output(stream: bool) -> None:
    async with serving(FakeEngine(scripted("one two END three"))) as running:
        body = {"prompt": "x", "max_tokens": 40, "stop": ["END", "no"], "include_stop_str_in_output": True}
        response = await running.http.post("/v1/completions", json={**body, "stream": stream})
        if stream:
            frames = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
            assert "".join(frame["choices"][0]["text"] for frame in frames) == "one two END"
        else:
            (choice,) = response.json()["choices"]
            assert (choice["text"], choice["stop_reason"]) == ("one two END", "END")
        whole = await running.http.post("/v1/completions", json={**body, "stop": "never"})
        assert whole.json()["choices"][0]["text"] == "one two END three"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_every_chunk_may_tell_its_usage(path: str) -> None:
    async with serving(FakeEngine(scripted("12345678"), chunk_tokens=4)) as running:
        body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
        del body["messages" if path == "/v1/completions" else "prompt"]
        options = {"include_usage": True, "continuous_usage_stats": True}
        response = await running.http.post(path, json={**body, "stream": True, "n": 2, "stream_options": options})
        frames = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        assert all(frame["usage"]["prompt_tokens"] > 0 for frame in frames)
        *pieces, last = frames
        for idx in range(2):
            counts = [frame["usage"]["completion_tokens"] for frame in pieces if frame["choices"][0]["index"] == idx]
            assert counts == sorted(counts)
            assert counts[0] == 4
            assert counts[-1] == 8
        assert last["usage"]["completion_tokens"] == 16
