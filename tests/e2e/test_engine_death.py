"""The engine's process is killed under twenty requests: each gets an answer, and the server goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import openai

from tests.e2e.serving import Serving, serving

NUM_REQUESTS = 20
MAX_TOKENS = 400


async def _complete(client: openai.AsyncOpenAI, model: str) -> str:
    answer = await client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=MAX_TOKENS, temperature=0, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text


async def _stream(client: openai.AsyncOpenAI, model: str, begun: asyncio.Event) -> str:
    text = ""
    stream = await client.completions.create(
        model=model,
        prompt="Once upon a time",
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        text += "".join(choice.text for choice in chunk.choices)
        begun.set()
    return text


async def _run(server: Serving) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        begun = asyncio.Event()
        whole = [asyncio.create_task(_complete(client, server.model)) for _ in range(NUM_REQUESTS // 2)]
        streams = [asyncio.create_task(_stream(client, server.model, begun)) for _ in range(NUM_REQUESTS // 2)]
        await begun.wait()
        os.kill(server.engine_pid, signal.SIGKILL)
        texts = await asyncio.gather(*whole)
        endings = await asyncio.gather(*streams, return_exceptions=True)
        assert len(set(texts)) == 1, "a request that ran again gave another answer"
        for ending in endings:  # a stream that had begun is told; one that had not may have run again
            if isinstance(ending, BaseException):
                assert isinstance(ending, openai.APIError), ending
                assert "engine" in str(ending)
            else:
                assert ending == texts[0]
        assert any(isinstance(ending, openai.APIError) for ending in endings)
        assert await _complete(client, server.model) == texts[0]


async def test_a_killed_engine_loses_no_request(stories260k: Path) -> None:
    with serving(stories260k, "--num-threads", "1", "--max-burst-ms", "0") as server:  # so that streams take a while
        await _run(server)
