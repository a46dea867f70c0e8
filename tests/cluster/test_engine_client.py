"""One engine behind a channel, on a thread and in a process: the same contract, and what happens when it dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

import pytest

from kea.cluster import EngineClient, Loading, ProcessChannel, start_engine
from kea.engine.base import ContextSpec
from kea.engine.config import DecodingConfig, EngineConfig
from kea.errors import EngineDied, InvalidRequest, ModelLoadFailed, ServiceClosing
from kea.models import Tokenizer
from kea.types import Chunk, FinishReason, GenerateOptions, Sampling, Stopping

PROMPT = "Once upon a time"


def _greedy(max_tokens: int) -> GenerateOptions:
    return GenerateOptions(Stopping(max_tokens, ignore_eos=True), Sampling(temperature=0.0))


async def _collect(stream: AsyncIterable[Chunk]) -> tuple[str, Chunk]:
    text = ""
    async for chunk in stream:
        text += chunk.text
    return text, chunk


def _config(path: Path) -> EngineConfig:
    """Without bursts: a stream that is to be ended would be over before that is heard."""
    decoding = DecodingConfig(max_burst_s=0.0)
    return EngineConfig(str(path), kv_memory_bytes=4_000_000, num_threads=1, decoding=decoding)


@pytest.fixture(params=["thread", "process"])
async def engine(request: pytest.FixtureRequest, stories260k: Path) -> AsyncIterator[EngineClient]:
    client = await start_engine(_config(stories260k), request.param)
    yield client
    await client.close()


@pytest.fixture(scope="module")
def prompt(stories260k: Path) -> list[int]:
    return Tokenizer.load(stories260k).encode(PROMPT)


async def test_a_context_appends_generates_and_forks(engine: EngineClient, prompt: list[int]) -> None:
    context = engine.create_context(ContextSpec())
    context.append(prompt)
    text, last = await _collect(context.generate(_greedy(12)))
    assert last.finish is not None
    assert last.finish.usage.output_tokens == 12
    assert text.startswith(", there was a")
    child = context.fork(len(prompt))
    context.free()
    again, _ = await _collect(child.generate(_greedy(12)))
    assert again == text
    child.free()
    snapshot = await engine.snapshot(check=True)
    assert snapshot.num_contexts == 0
    assert snapshot.memory.num_used == 0


async def test_many_generations_at_once(engine: EngineClient, prompt: list[int]) -> None:
    async def one() -> str:
        context = engine.create_context(ContextSpec())
        context.append(prompt)
        text, _ = await _collect(context.generate(_greedy(20)))
        context.free()
        return text

    texts = await asyncio.gather(*(one() for _ in range(20)))
    assert len(set(texts)) == 1


async def test_cancel_ends_the_stream(engine: EngineClient, prompt: list[int]) -> None:
    context = engine.create_context(ContextSpec())
    context.append(prompt)
    stream = context.generate(_greedy(400))
    chunks: list[Chunk] = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == 3:
            stream.cancel()
    assert chunks[-1].finish is not None
    assert chunks[-1].finish.reason is FinishReason.CANCELLED
    context.free()


async def test_an_error_crosses_with_its_class(engine: EngineClient) -> None:
    context = engine.create_context(ContextSpec())
    context.append([99_999])
    with pytest.raises(InvalidRequest, match="99999"):
        await _collect(context.generate(_greedy(3)))
    context.free()


async def test_close_answers_what_still_runs(engine: EngineClient, prompt: list[int]) -> None:
    context = engine.create_context(ContextSpec())
    context.append(prompt)
    stream = context.generate(_greedy(400))
    async for _ in stream:
        break
    await engine.close()
    with pytest.raises(ServiceClosing):
        await _collect(stream)
    with pytest.raises(ServiceClosing):
        engine.create_context(ContextSpec())


@pytest.mark.parametrize("place", ["thread", "process"])
async def test_a_model_that_is_not_there_is_said(place: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"config\.json"):
        await start_engine(EngineConfig(str(tmp_path)), place)  # type: ignore[arg-type]


async def test_loading_is_told(stories260k: Path) -> None:
    told: list[Loading] = []
    client = await start_engine(_config(stories260k), "thread", told.append)
    await client.close()
    assert {loading.stage for loading in told} >= {"weights", "check"}


async def test_a_killed_process_fails_its_requests_and_is_replaced(
    stories260k: Path, prompt: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    channel = ProcessChannel(_config(stories260k))
    client = await EngineClient.start(channel)
    try:
        contexts = [client.create_context(ContextSpec()) for _ in range(20)]
        for context in contexts:
            context.append(prompt)
        streams = [context.generate(_greedy(400)) for context in contexts]
        async for _ in streams[0]:
            break
        pid = channel.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        results = await asyncio.gather(*(_collect(stream) for stream in streams), return_exceptions=True)
        assert all(isinstance(result, EngineDied) and result.retryable for result in results)
        with pytest.raises(EngineDied):
            await _collect(contexts[0].generate(_greedy(3)))
        for context in contexts:
            context.free()
        fresh = client.create_context(ContextSpec())
        fresh.append(prompt)
        text, _ = await _collect(fresh.generate(_greedy(12)))
        assert text.startswith(", there was a")
        assert client.num_restarts == 1
        died, back = (record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"})
        assert died == "the engine died with 20 running outputs: The engine's process ended (exit code -9)."
        assert re.fullmatch(r"the engine is back after \d+\.\d s", back)
        assert channel.pid != pid
        assert (await client.snapshot(check=True)).num_contexts == 1
    finally:
        await client.close()
