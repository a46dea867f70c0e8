"""A real server on a loopback port over the fake engine, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from kea.server.app import create_app
from kea.server.config import ServerConfig
from kea.server.run import Server
from kea.server.state import AppState
from kea.service import NativeFunction, Service
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import FakeTokenizer


class ChatTokenizer(FakeTokenizer):
    """The fake tokenizer with the methods that the server needs beside.

    `style` is how its template writes tool calls; `hidden` are texts of special tokens.
    """

    def __init__(
        self, pieces: Sequence[str] = (), *, chat: bool = True, style: str = "hermes", hidden: Sequence[str] = ()
    ) -> None:
        super().__init__(pieces, chat=chat)
        self.style = style
        self.hidden = hidden

    @property
    def supports_tools(self) -> bool:
        return self.has_chat_template and self.style != "none"

    def decode(self, token_ids: Sequence[int], *, skip_special: bool | None = None) -> str:
        text = super().decode(token_ids)
        for mark in self.hidden if skip_special else ():
            text = text.replace(mark, "")
        return text

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode(errors="replace")

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        return self.encode(self.render_chat(messages, **options), special=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        turns = []
        for message in messages:
            calls = "".join(self._call(call) for call in message.get("tool_calls") or ())
            turns.append({"role": message["role"], "content": f"{message.get('content', '')}{calls}"})
        text = super().render_chat(turns, tools, add_generation_prompt)
        if self.style == "think":
            text += "" if options.get("enable_thinking", True) else "<think></think>"
        return text

    def _call(self, call: Mapping[str, Any]) -> str:
        function = call["function"]
        written = json.dumps({"name": function["name"], "arguments": function["arguments"]})
        return f"<tool_call>{written}</tool_call>" if self.style == "hermes" else written


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that runs, and clients to it. `http` raises for no status."""

    url: str
    state: AppState
    engine: FakeEngine
    http: httpx2.AsyncClient
    openai: openai.AsyncOpenAI
    server: Server

    async def until_idle(self) -> None:
        """Wait until no request runs, and check that nothing is left behind."""
        async with asyncio.timeout(5):
            while self.state.lifecycle.num_running or self.engine.contexts:  # noqa: ASYNC110 - they notify nobody
                await asyncio.sleep(0.005)
        assert self.state.slots.num_held == 0


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    config: ServerConfig | None = None,
    *,
    tokenizer: ChatTokenizer | None = None,
    api_key: str = "none",
    functions: Mapping[str, NativeFunction] | None = None,
) -> AsyncIterator[Serving]:
    """Run a server; at the end, check that it has no contexts left."""
    tokenizer = tokenizer or ChatTokenizer()
    engine = engine or FakeEngine(tokenizer=tokenizer)
    async with Service([engine], tokenizer, functions=functions) as service:
        app = create_app(config or ServerConfig(port=0), engine, tokenizer, service)
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = Server(app, lambda found: ready.set_result(found.url), handles_signals=False)
        running = asyncio.create_task(server.run())
        try:
            url = await asyncio.wait_for(ready, 5)
            headers = {"authorization": f"Bearer {api_key}"}
            async with (
                httpx2.AsyncClient(base_url=url, headers=headers, timeout=20, verify=False) as http,
                httpx2.AsyncClient(timeout=20, verify=False) as inner,
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, http_client=inner) as client,
            ):
                yield Serving(url, app.state.kea, engine, http, client, server)
                engine.release()
        finally:
            server.stop()
            await asyncio.wait_for(running, 15)
    assert not engine.contexts, "contexts were left behind"


@dataclass(frozen=True, slots=True)
class Live:
    """A server on a thread of its own, for tests that share it. `call` runs work on its loop."""

    http: httpx2.Client
    running: Serving
    call: Callable[[Coroutine[Any, Any, Any]], Any]

    def refusal(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Send what should be refused; check that nothing was generated; return the status and the error."""
        num_before = len(self.running.engine.record.prompts)
        response = self.http.post(path, json=body)
        assert response.status_code != 200, response.text
        assert len(self.running.engine.record.prompts) == num_before, "it was generated in spite of the refusal"
        return response.status_code, response.json()["error"]


@contextmanager
def serving_on_a_thread(
    engine: FakeEngine | None = None, config: ServerConfig | None = None, **options: Any
) -> Iterator[Live]:
    """Run one server for many requests; at its end nothing may be left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def open_server() -> tuple[AsyncExitStack, Serving]:
        stack = AsyncExitStack()
        return stack, await stack.enter_async_context(serving(engine, config, **options))

    try:
        stack, running = call(open_server())
        try:
            with httpx2.Client(base_url=running.url, timeout=20, verify=False) as http:
                yield Live(http, running, call)
        finally:
            call(stack.aclose())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
