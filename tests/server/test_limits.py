"""Limits that every request meets: the size of its body, requests at once per key, the length of its prompt."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai
import pytest

from kea.errors import LimitExceeded
from kea.server.config import ApiKey, Limits, ServerConfig
from kea.server.limits import Slots
from tests.server.support import ChatTokenizer, serving

LONG = "x" * 10_000_000


async def test_long_bodies_are_refused_before_they_are_read() -> None:
    async with serving(config=ServerConfig(port=0, limits=Limits(max_body_bytes=1000))) as running:
        response = await running.http.post("/v1/completions", json={"prompt": "x" * 1000})
        assert response.status_code == 413
        assert response.json()["error"]["param"] == "body"
        assert (await running.http.post("/v1/completions", json={"prompt": "x" * 900})).status_code == 200


async def test_long_bodies_of_unknown_length_are_refused_too() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100

    async with serving(config=ServerConfig(port=0, limits=Limits(max_body_bytes=1000))) as running:
        headers = {"content-type": "application/json"}
        response = await running.http.post("/v1/completions", content=pieces(), headers=headers)
        assert response.status_code == 413


async def test_a_key_has_a_number_of_requests_at_once() -> None:
    keys = (ApiKey("a", "secret-of-a"), ApiKey("b", "secret-of-b"))
    config = ServerConfig(port=0, api_keys=keys, limits=Limits(max_requests_per_key=2))
    async with serving(config=config, api_key="secret-of-a") as running:
        running.engine.hold()
        create = running.openai.completions.create
        waiting = [asyncio.create_task(create(model="fake", prompt="x")) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(openai.RateLimitError) as caught:
            await create(model="fake", prompt="x")
        assert caught.value.response.headers["x-should-retry"] == "true"
        assert [model.id async for model in running.openai.models.list()] == ["fake"], "this needs no slot"
        of_b = running.openai.with_options(api_key="secret-of-b")
        other = asyncio.create_task(of_b.completions.create(model="fake", prompt="x"))
        await asyncio.sleep(0.02)
        running.engine.release()
        assert len(await asyncio.gather(*waiting, other)) == 3
        await running.until_idle()
        await create(model="fake", prompt="x")


ASKED = {"role": "user", "content": "x"}
CALLED = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"text": LONG})}}
TOOL = {"type": "function", "function": {"name": "f", "description": LONG}}
CHATS: dict[str, dict[str, Any]] = {
    "content": {"messages": [{"role": "user", "content": LONG}]},
    "reasoning": {"messages": [ASKED, {"role": "assistant", "content": "x", "reasoning_content": LONG}, ASKED]},
    "calls": {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALLED]}, ASKED]},
    "tools": {"messages": [ASKED], "tools": [TOOL]},
}


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions"])
@pytest.mark.parametrize("name", CHATS)
async def test_a_conversation_that_no_context_holds_is_not_tokenised(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as running:
        monkeypatch.setattr(ChatTokenizer, "encode_chat", None)
        response = await running.http.post(path, json=CHATS[name])
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_nor_is_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running:
        monkeypatch.setattr(ChatTokenizer, "encode", None)
        for path in ("/tokenize", "/v1/completions"):
            response = await running.http.post(path, json={"prompt": LONG})
            assert response.json()["error"]["code"] == "context_length_exceeded"


class WatchedTokenizer(ChatTokenizer):
    """Notes on which thread it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def decode(self, token_ids: Sequence[int], *, skip_special: bool | None = None) -> str:
        self.threads.add(threading.get_ident())
        return super().decode(token_ids, skip_special=skip_special)


async def test_many_ids_are_read_beside_the_loop() -> None:
    tokenizer = WatchedTokenizer()
    async with serving(tokenizer=tokenizer) as running:
        tokenizer.threads.clear()
        response = await running.http.post("/detokenize", json={"tokens": [tokenizer.encode("a")[-1]] * 30_000})
        assert response.json()["prompt"] == "a" * 30_000
    assert tokenizer.threads
    assert threading.get_ident() not in tokenizer.threads


def test_slots_are_given_back() -> None:
    slots = Slots(1)
    with slots.hold("a"), slots.hold("b"):
        assert slots.num_held == 2
        with pytest.raises(LimitExceeded), slots.hold("a"):
            pass
    assert slots.num_held == 0
    with pytest.raises(ZeroDivisionError), slots.hold("a"):
        _ = 1 / 0
    assert slots.num_held == 0
