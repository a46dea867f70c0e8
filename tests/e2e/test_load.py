"""Many mixed requests at once through the official client: all answered, each as if alone, nothing left behind."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from tests.e2e.serving import Serving, serving

NUM_REQUESTS = 200
TEXTS = ("Once upon a time", "Lily and Ben were friends. They", "The dog ran to the big tree", "Tom")
TAILS = (" and", "", " She said", " He")


@dataclass(frozen=True)
class Order:
    """One request: its arguments for the client, and whether it streams."""

    arguments: dict[str, Any] = field(hash=False)
    is_streamed: bool


@dataclass(frozen=True)
class Answer:
    texts: tuple[str, ...]
    output_tokens: int


def _orders(model: str) -> list[Order]:
    rng = random.Random(1)
    orders = []
    for index in range(NUM_REQUESTS):
        arguments: dict[str, Any] = {
            "model": model,
            "prompt": rng.choice(TEXTS) + rng.choice(TAILS),
            "max_tokens": rng.randint(5, 60),
            "temperature": rng.choice([0, 0, 0.8]),
            "seed": index,
        }
        if index % 7 == 0:
            arguments["stop"] = ["."]
        if index % 11 == 0:
            arguments["logprobs"] = 2
        if index % 13 == 0:
            arguments["n"] = 2
        orders.append(Order(arguments, index % 3 == 0))
    return orders


async def _send(client: openai.AsyncOpenAI, order: Order) -> Answer:
    if not order.is_streamed:
        answer = await client.completions.create(**order.arguments)
        assert answer.usage is not None
        return Answer(tuple(choice.text for choice in answer.choices), answer.usage.completion_tokens)
    texts: dict[int, str] = {}
    output_tokens = 0
    stream = await client.completions.create(stream=True, stream_options={"include_usage": True}, **order.arguments)
    async for chunk in stream:
        output_tokens = chunk.usage.completion_tokens if chunk.usage else output_tokens
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return Answer(tuple(texts[index] for index in sorted(texts)), output_tokens)


async def _run(server: Serving) -> None:
    orders = _orders(server.model)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        together = await asyncio.gather(*(_send(client, order) for order in orders))
        assert server.metric("kea:generation_tokens_total") == sum(answer.output_tokens for answer in together)
        num_choices = sum(order.arguments.get("n", 1) for order in orders)
        assert server.metric("kea:request_success_total") == num_choices
        assert server.metric("kea:num_requests_running") == 0
        assert server.metric("kea:num_requests_waiting") == 0
        assert server.metric("kea:kv_cache_usage_perc") == 0
        for order, answer in zip(orders, together, strict=True):
            assert await _send(client, order) == answer


async def test_200_mixed_requests_are_answered_as_each_alone(stories260k: Path) -> None:
    with serving(stories260k, "--num-threads", "1") as server:
        await _run(server)
        assert server.stop() == 0
