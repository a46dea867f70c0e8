"""The client against a real server on loopback that is slow or wrong as scripted."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import cast

import pytest

from kea.bench.load.calibration import calibrate, probe
from kea.bench.load.client import Api, LoadClient, RequestResult, RequestShape, Target
from kea.bench.load.prompts import WORDS, Piece, render
from kea.errors import InvalidRequest, Unreachable
from tests.bench.fake_openai import Act, Ending, FakeOpenAI, serving
from tests.bench.waiting import until


async def ask(fake: FakeOpenAI, shape: RequestShape | None = None, output_len: int = 5) -> RequestResult:
    shape = shape or RequestShape()
    async with LoadClient(Target("fake", fake.url, fake.api_key), shape, time.perf_counter) as client:
        body = shape.body("fake", "three word prompt", output_len)
        return await client.send(body, index=3, output_len=output_len, scheduled_s=0.0, start=time.perf_counter())


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_latencies_are_those_of_the_script(api: Api) -> None:
    with serving(FakeOpenAI(script=lambda _: Act(first_s=0.2, gap_s=0.06, cached_tokens=2))) as fake:
        result = await ask(fake, RequestShape(api))
    assert result.failure is None
    assert (result.index, result.prompt_tokens, result.output_tokens, result.cached_tokens) == (3, 4, 5, 2)
    assert result.is_usage_reported
    # Never early; late by as much as a busy machine may delay us.
    assert result.ttft_s is not None
    assert 0.199 <= result.ttft_s < 3.0
    assert len(result.itl_s) == 4
    assert sum(result.itl_s) >= 0.23
    assert result.e2e_s == pytest.approx(result.ttft_s + sum(result.itl_s))
    assert sorted(result.itl_s)[1] < 1.0


async def test_the_request_is_of_the_asked_shape() -> None:
    with serving(FakeOpenAI()) as fake:
        await ask(fake, RequestShape("chat", ignore_eos=False, temperature=0.5, extra={"top_p": 0.9}))
        await ask(fake)
    chat, completion = fake.bodies
    assert chat == {
        "model": "fake",
        "messages": [{"role": "user", "content": "three word prompt"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_p": 0.9,
    }
    assert completion["prompt"] == "three word prompt"
    assert completion["ignore_eos"] is True


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [
        (Act(status=503), "http", "503: scripted"),
        (Act(ending="error_event"), "server_error", "scripted event"),
        (Act(ending="cut"), "disconnect", "without a finish reason"),
        (Act(ending="reset"), "disconnect", ""),
        (Act(ending="no_json"), "protocol", "broken"),
        (Act(tokens=0, ending="no_token"), "protocol", "no token"),
        (Act(first_s=30), "timeout", "0.5 s"),
    ],
)
async def test_every_way_to_fail_is_named(act: Act, kind: str, said: str) -> None:
    with serving(FakeOpenAI(script=lambda _: act)) as fake:
        result = await ask(fake, RequestShape(timeout_s=0.5 if kind == "timeout" else 60.0))
    assert result.failure is not None
    assert result.failure.kind == kind
    assert said in result.failure.message


@pytest.mark.parametrize("ending", ["cut", "error_event", "reset"])
async def test_a_failed_request_keeps_what_it_had(ending: Ending) -> None:
    with serving(FakeOpenAI(script=lambda _: Act(tokens=3, ending=ending))) as fake:
        result = await ask(fake)
    assert result.failure is not None
    assert result.output_tokens == 3
    assert result.ttft_s is not None


async def test_a_refused_connection_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        fake = FakeOpenAI(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        result = await ask(fake)
    assert result.failure is not None
    assert result.failure.kind == "connection"


async def test_cancelling_a_request_closes_its_connection() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(gap_s=0.05, tokens=1000))) as fake:
        task = asyncio.create_task(ask(fake))
        await until(lambda: fake.num_under_way == 1)
        await asyncio.sleep(0.2)
        task.cancel()
        result = await task
        assert result.failure is not None
        assert result.failure.kind == "interrupted"
        assert result.output_tokens >= 1
        await until(lambda: fake.num_under_way == 0)


async def test_short_and_uncounted_answers_are_told() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(tokens=2, has_usage=False))) as fake:
        result = await ask(fake)
    assert result.failure is None
    assert (result.output_tokens, result.wanted_output_tokens, result.is_usage_reported) == (2, 5, False)


async def test_the_key_is_sent_and_never_shown() -> None:
    with serving(FakeOpenAI(api_key="sesame")) as fake:
        assert (await ask(fake)).failure is None
        assert "sesame" not in repr(Target("fake", fake.url, "sesame"))


def test_addresses() -> None:
    assert Target("a", "http://host:1/v1/").base_url == "http://host:1"
    assert Target("a", "https://host").base_url == "https://host"
    with pytest.raises(InvalidRequest, match="base-url"):
        Target("a", "host:1")


async def test_what_a_server_says_of_itself() -> None:
    with serving(FakeOpenAI(models=("m", "n"))) as fake:
        async with LoadClient(Target("fake", fake.url), RequestShape(), time.perf_counter) as client:
            assert await client.try_models() == ("m", "n")
            assert await client.try_version() == "1.2.3"
            assert await client.try_count_tokens("m", "two words") == 3


@pytest.mark.parametrize("has_tokenize", [True, False])
async def test_calibration_gives_prompts_of_the_wanted_length(has_tokenize: bool) -> None:
    with serving(FakeOpenAI(has_tokenize=has_tokenize)) as fake:
        async with LoadClient(Target("fake", fake.url), RequestShape(), time.perf_counter) as client:
            lexicon = await calibrate(client, "m")
            result = await probe(client, "m", render((Piece("x", 100),), lexicon))
    assert lexicon.is_exact is has_tokenize
    assert lexicon.base_tokens == 1
    assert set(lexicon.words) <= set(WORDS)
    assert len(lexicon.words) >= 40
    assert result.prompt_tokens == 100


async def test_words_that_cost_more_where_a_prompt_begins_are_not_used() -> None:
    class Counting:
        async def try_count_tokens(self, model: str, text: str) -> int:
            """One for each word, one for the beginning of the sequence, one more for a long word that comes first."""
            words = text.split(" ")
            return 1 + len(words) + (len(words[0]) > 5)

    client = cast("LoadClient", Counting())
    lexicon = await calibrate(client, "m")
    assert (lexicon.base_tokens, lexicon.is_exact) == (1.0, True)
    assert all(len(word) <= 5 for word in lexicon.words)
    for seed in range(20):
        assert await client.try_count_tokens("m", render((Piece(f"{seed}", 50),), lexicon)) == 50


async def test_a_server_that_refuses_is_named_before_the_load() -> None:
    fake = FakeOpenAI(api_key="sesame")
    with serving(fake):
        async with LoadClient(Target("mine", fake.url), RequestShape(), time.perf_counter) as client:
            with pytest.raises(Unreachable, match=r"The server at .* refused .*: 401: wrong key"):
                await probe(client, "m")
