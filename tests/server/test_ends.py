"""The ways a request ends early: its client leaves, the engine dies, the server stops. Nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from kea.errors import EngineDied, InvalidRequest
from kea.server import admin
from kea.server.app import create_app
from kea.server.config import ServerConfig
from kea.server.run import Ready, Server, open_socket
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import ChatTokenizer, Serving, serving

Ask = Callable[[Serving], Awaitable[Any]]
COMPLETION = {"prompt": "x", "n": 3}
CHAT = {"messages": [{"role": "user", "content": "x"}], "n": 2}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for notifies nobody
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("completions", COMPLETION), ("chat/completions", CHAT)])
async def test_a_client_that_leaves_frees_its_contexts(path: str, body: dict[str, Any], stream: bool) -> None:
    async with serving() as running:
        running.engine.hold()
        asking = asyncio.create_task(running.http.post(f"/v1/{path}", json={**body, "stream": stream}))
        await until(lambda: len(running.engine.contexts) == body["n"])
        asking.cancel()
        await running.until_idle()
        assert running.engine.contexts == set()
        text = (await running.http.get("/metrics")).text
        assert f'kea:request_success_total{{finished_reason="cancelled",model_name="fake"}} {body["n"]}.0' in text


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_context() -> None:
    async with serving(FakeEngine(scripted("a" * 1000))) as running:
        body = {"prompt": "x", "max_tokens": 1000, "stream": True}
        async with running.http.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                running.engine.hold()
                break
        await running.until_idle()
        assert running.engine.contexts == set()


async def test_an_engine_that_dies_before_the_first_byte_costs_one_more_run() -> None:
    engine = FakeEngine(scripted("fine"))
    async with serving(engine) as running:
        for stream in (False, True):
            engine.fail_next(EngineDied("gone"), after_tokens=0 if stream else 3)
            response = await running.http.post("/v1/completions", json={"prompt": "x", "stream": stream})
            assert response.status_code == 200
            assert "fine" in response.text or '"text":"fine"' in response.text
        assert len(engine.record.prompts) == 4


async def test_an_engine_that_dies_twice_is_a_retryable_503() -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        for _ in range(2):
            engine.fail_next(EngineDied("gone"))
        with pytest.raises(openai.InternalServerError) as caught:
            await running.openai.completions.create(model="fake", prompt="x")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        again = running.openai.with_options(max_retries=1)
        for _ in range(2):
            engine.fail_next(EngineDied("gone"))
        assert (await again.completions.create(model="fake", prompt="x")).choices[0].text == "x"


async def test_an_engine_that_dies_in_a_stream_is_told_there() -> None:
    engine = FakeEngine(scripted("a long enough text"))
    async with serving(engine) as running:
        engine.fail_next(EngineDied("gone"), after_tokens=8)
        with pytest.raises(openai.APIError, match="gone"):
            async for _ in await running.openai.completions.create(model="fake", prompt="x", stream=True):
                pass
        assert len(engine.record.prompts) == 1, "what was sent is not taken back"


async def test_killing_the_engine_answers_all_that_ran_on_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(lambda prompt, _: prompt * 5)
    async with serving(engine) as running:
        engine.hold()
        create = running.openai.completions.create
        asking = [asyncio.create_task(create(model="fake", prompt=f"p{idx}", max_tokens=99)) for idx in range(20)]
        await until(lambda: len(engine.contexts) == 20)
        engine.die()
        engine.restart()
        engine.release()
        texts = [reply.choices[0].text for reply in await asyncio.gather(*asking)]
        assert texts == [f"p{idx}" * 5 for idx in range(20)]
    assert [record for record in caplog.records if record.levelname != "INFO"] == [], "the engine's death is told once"


async def test_a_dead_engine_is_told_by_health_and_leaves_the_other_metrics() -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        assert "kea:kv_cache_usage_perc" in (await running.http.get("/metrics")).text

        async def no_snapshot(**_: Any) -> Any:
            raise EngineDied("gone")

        engine.snapshot = no_snapshot  # type: ignore[method-assign]
        engine.die()
        assert (await running.http.get("/health")).status_code == 503
        text = (await running.http.get("/metrics")).text
        assert "kea:kv_cache_usage_perc" not in text
        assert "kea:time_to_first_token_seconds" in text


async def test_an_engine_in_a_long_step_is_healthy_and_keeps_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SNAPSHOT_TIMEOUT_S", 0.05)
    engine = FakeEngine()
    async with serving(engine) as running:
        before = (await running.http.get("/metrics")).text

        async def answers_late(**_: Any) -> Any:
            await asyncio.sleep(60)

        engine.snapshot = answers_late  # type: ignore[method-assign]
        assert (await running.http.get("/health")).status_code == 200
        assert (await running.http.get("/metrics")).text == before
        assert "kea:kv_cache_usage_perc" in before
        engine.die()
        assert "kea:kv_cache_usage_perc" not in (await running.http.get("/metrics")).text


async def test_a_stop_lets_running_requests_end() -> None:
    async with serving(FakeEngine(scripted("done"))) as running:
        running.engine.hold()
        asking = asyncio.create_task(running.openai.completions.create(model="fake", prompt="x"))
        await until(lambda: running.state.lifecycle.num_running == 1)
        running.server.stop()
        await until(lambda: running.state.lifecycle.stage.value == "draining")
        with pytest.raises(openai.APIConnectionError):
            await running.openai.models.list()
        running.engine.release()
        assert (await asking).choices[0].text == "done"


async def test_a_stop_fails_with_an_answer_what_outlives_the_grace() -> None:
    config = ServerConfig(port=0, shutdown_grace_s=0.1)
    async with serving(FakeEngine(scripted("a" * 100)), config) as running:
        streamed: list[str] = []

        async def read_stream() -> None:
            body = {"prompt": "x", "stream": True, "max_tokens": 100}
            async with running.http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    streamed.append(line)
                    running.engine.hold()

        reading = asyncio.create_task(read_stream())
        await until(lambda: len(streamed) > 0)
        asking = asyncio.create_task(running.http.post("/v1/completions", json={"prompt": "x"}))
        session = (await running.http.post("/v1/sessions", json={})).json()
        url = f"/v1/sessions/{session['session_id']}"
        headers = {"x-kea-session-secret": session["session_secret"]}
        program = {
            "calls": [{"id": "c", "template": "a {{x}}", "parameters": [{"name": "x", "output": {"variable": "v"}}]}]
        }
        assert (await running.http.post(f"{url}/calls", json=program, headers=headers)).status_code == 202
        getting = asyncio.create_task(running.http.get(f"{url}/variables/v", headers=headers))
        await until(lambda: running.state.lifecycle.num_running == 3)
        running.server.stop()
        for answer in await asyncio.gather(asking, getting):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "service_closing"
            assert answer.headers["retry-after"]
        await reading
        assert streamed[-2] == "data: [DONE]" or streamed[-1] == "data: [DONE]"
        errors = [json.loads(line[6:]) for line in streamed if line.startswith('data: {"error"')]
        assert [error["error"]["code"] for error in errors] == ["service_closing"]


async def test_a_second_stop_ends_at_once() -> None:
    async with serving(config=ServerConfig(port=0, shutdown_grace_s=60)) as running:
        running.engine.hold()
        asking = asyncio.create_task(running.http.post("/v1/completions", json={"prompt": "x"}))
        await until(lambda: running.state.lifecycle.num_running == 1)
        running.server.stop()
        running.server.stop()
        assert (await asking).status_code == 503


@pytest.mark.parametrize(("grace_s", "num_stops"), [(0.0, 1), (0.1, 1), (60.0, 2)])
async def test_streams_that_a_stop_cuts_are_told_and_log_nothing(
    grace_s: float, num_stops: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(port=0, shutdown_grace_s=grace_s)
    async with serving(FakeEngine(scripted("a" * 100)), config) as running:
        begun: list[str] = []

        async def read_stream(path: str, body: dict[str, Any]) -> str:
            lines: list[str] = []
            async with running.http.stream("POST", path, json={**body, "stream": True}) as response:
                async for line in response.aiter_lines():
                    running.engine.hold()
                    if not lines:
                        begun.append(path)
                    lines.append(line)
            return "\n".join(lines)

        asked = {
            "/v1/completions": {"prompt": "x", "max_tokens": 100},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100},
            "/v1/responses": {"input": "x", "max_output_tokens": 100},
        }
        reading = [asyncio.create_task(read_stream(path, body)) for path, body in asked.items()]
        await until(lambda: len(begun) == len(asked))
        for _ in range(num_stops):
            running.server.stop()
        completion, chat, _ = await asyncio.gather(*reading)
        for text in (completion, chat):
            assert "service_closing" in text
            assert text.rstrip().endswith("data: [DONE]")
    assert [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_the_ready_notice_tells_where_it_is() -> None:
    engine, notices = FakeEngine(), list[Ready]()
    app = create_app(ServerConfig(port=0, model_names=("my-model", "alias")), engine, ChatTokenizer())
    server = Server(app, notices.append, handles_signals=False)
    running = asyncio.create_task(server.run())
    await until(lambda: len(notices) == 1)
    ready = notices[0]
    assert (ready.host, ready.url, ready.model) == ("127.0.0.1", f"http://127.0.0.1:{ready.port}", "my-model")
    async with httpx2.AsyncClient(base_url=ready.url) as http:
        assert (await http.get("/v1/models")).json()["models"] == ["my-model", "alias"]
        assert (await http.post("/v1/sessions", json={})).status_code == 404, "there is no service here"
    with pytest.raises(InvalidRequest) as caught:
        open_socket(ServerConfig(port=ready.port))
    assert caught.value.param == "port"
    server.stop()
    await running


@pytest.mark.parametrize("stream", [False, True])
async def test_the_line_of_a_request_tells_its_tokens_its_time_and_its_client(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kea.server.endpoint")
    async with serving(FakeEngine(scripted("fine"))) as running:
        body = {"prompt": "abc", "n": 2, "stream": stream}
        response = await running.http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
        assert response.status_code == 200
        await running.http.get("/health")
        await until(lambda: len(caplog.records) == 2)
    line, health = (record.getMessage() for record in caplog.records)
    prompt, outputs = len(running.engine.tokenizer.encode("abc")), 2 * (len(running.engine.tokenizer.encode("fine")))
    found = re.fullmatch(
        r"POST /v1/completions: 200 in \d\.\d{3} s, (\d+) \+ (\d+) tokens of fake, "
        r"client 127\.0\.0\.1:\d+, request mine",
        line,
    )
    assert found is not None, line
    assert int(found[1]) == prompt
    assert abs(int(found[2]) - outputs) <= 2  # the marks of an end and of a begin
    assert re.fullmatch(r"GET /health: 200 in \d\.\d{3} s, client 127\.0\.0\.1:\d+, request \w+", health)


async def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    with open_socket(ServerConfig(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only on sockets that name it"
