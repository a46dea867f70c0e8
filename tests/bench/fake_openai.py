"""A real HTTP server on loopback that answers as OpenAI's API does, slowly or wrongly as a script says.

It knows no model: a word is a token. What each request does is decided by the script, from the number of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Ending = Literal["whole", "cut", "reset", "error_event", "no_json", "no_token"]


@dataclass(frozen=True)
class Act:
    """What one request does. `tokens` overrides max_tokens; `ending` says how its stream ends after them."""

    status: int = 200
    first_s: float = 0.0
    gap_s: float = 0.0
    tokens: int | None = None
    ending: Ending = "whole"
    has_usage: bool = True
    cached_tokens: int | None = None


def whole(number: int) -> Act:
    return Act()


@dataclass
class FakeOpenAI:
    """The server's script and what it saw. Requests of one token are probes and do not count."""

    script: Callable[[int], Act] = whole
    has_tokenize: bool = True
    models: tuple[str, ...] | None = ("fake",)
    api_key: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_dropped: int = 0
    num_under_way: int = 0
    most_under_way: int = 0
    url: str = ""

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._models),
            Route("/version", self._version),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/completions", self._generate, methods=["POST"]),
            Route("/v1/chat/completions", self._generate, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _models(self, request: Request) -> Response:
        if self.models is None:
            return JSONResponse({"error": {"message": "scripted"}}, status_code=500)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": "1.2.3"})

    async def _tokenize(self, request: Request) -> Response:
        if not self.has_tokenize:
            return JSONResponse({"error": {"message": "no such route"}}, status_code=404)
        return JSONResponse({"count": 1 + len((await request.json())["prompt"].split())})

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": {"message": "wrong key"}}, status_code=401)
        if body["max_tokens"] == 1:
            return self._stream(body, Act())
        number = len(self.bodies)
        self.bodies.append(body)
        act = self.script(number)
        if act.status != 200:
            return JSONResponse({"error": {"message": "scripted", "code": act.status}}, status_code=act.status)
        return self._stream(body, act)

    def _stream(self, body: dict[str, Any], act: Act) -> Response:
        return StreamingResponse(self._counted(body, act), media_type="text/event-stream")

    async def _counted(self, body: dict[str, Any], act: Act) -> AsyncIterator[bytes]:
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        try:
            async for event in self._events(body, act):
                yield event
        except asyncio.CancelledError:
            self.num_dropped += 1
            raise
        finally:
            self.num_under_way -= 1

    async def _events(self, body: dict[str, Any], act: Act) -> AsyncIterator[bytes]:
        num_tokens = body["max_tokens"] if act.tokens is None else act.tokens
        is_chat = "messages" in body
        if is_chat:
            yield event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        await asyncio.sleep(act.first_s)
        for index in range(num_tokens):
            if index:
                await asyncio.sleep(act.gap_s)
            text = {"delta": {"content": "word "}} if is_chat else {"text": "word "}
            yield event({"choices": [{**text, "finish_reason": None}]})
        if act.ending == "error_event":
            yield event({"error": {"message": "scripted event"}})
        elif act.ending == "no_json":
            yield b"data: {broken\n\n"
        elif act.ending == "reset":
            raise ConnectionResetError("scripted")
        elif act.ending in {"whole", "no_token"}:
            for last in closing_events(body, act, num_tokens):
                yield last


def closing_events(body: dict[str, Any], act: Act, num_tokens: int) -> Iterator[bytes]:
    is_chat = "messages" in body
    if act.ending == "whole":
        yield event({"choices": [{**({"delta": {}} if is_chat else {"text": ""}), "finish_reason": "length"}]})
    if act.has_usage:
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        usage: dict[str, Any] = {"prompt_tokens": 1 + len(prompt.split()), "completion_tokens": num_tokens}
        if act.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": act.cached_tokens}
        yield event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextlib.contextmanager
def serving(fake: FakeOpenAI) -> Iterator[FakeOpenAI]:
    """Serve `fake` in a thread of its own until the end of the block; its `url` tells where."""
    # The protocol is named: asyncio turns off Nagle's delay, 40 ms per small write, only on sockets that say TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
