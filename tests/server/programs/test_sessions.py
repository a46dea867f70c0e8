"""Kea's own session routes, as docs/wire.md tells."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import kea
from kea import connect
from kea.errors import EngineFault, error_from_dict
from kea.program.events import EventDecoder, StreamEvent
from kea.server.config import ApiKey, Limits, ServerConfig
from kea.server.programs import sessions
from kea.server.sse import with_keep_alive
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import Serving, serving


@kea.function
def hello(text: kea.Output(max_tokens=10)):  # type: ignore[no-untyped-def,valid-type]
    """hello {{text}}"""


class Session:
    """A session opened over HTTP."""

    def __init__(self, serving: Serving, opened: dict[str, Any]) -> None:
        self.http = serving.http
        self.url = f"/v1/sessions/{opened['session_id']}"
        self.headers: dict[str, Any] = {"X-Kea-Session-Secret": opened["session_secret"]}

    @classmethod
    async def open(cls, serving: Serving, **body: Any) -> Session:
        response = await serving.http.post("/v1/sessions", json=body)
        assert response.status_code == 201
        assert 0 <= response.json()["session_id"] < 2**53
        return cls(serving, response.json())

    async def send(self, method: str, path: str = "", body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        response = await self.http.request(method, self.url + path, json=body, headers=self.headers, **options)
        return response.status_code, response.json()

    async def submit(self, *calls: dict[str, Any], **more: Any) -> None:
        assert await self.send("POST", "/calls", {"calls": list(calls), **more}) == (202, {})

    async def events(self, variable_id: str) -> list[StreamEvent]:
        return await self.events_of("GET", f"/variables/{variable_id}/stream")

    async def events_of(self, method: str, path: str, body: Any = None) -> list[StreamEvent]:
        decoder, events = EventDecoder(), list[StreamEvent]()
        async with self.http.stream(method, self.url + path, headers=self.headers, json=body) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                events += decoder.feed(line)
        return events


def call(call_id: str, template: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": call_id, "name": call_id, "template": template, "parameters": parameters}


def writes(name: str, variable: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "output": {"variable": variable, **settings}}


def reads(name: str, variable: str) -> dict[str, Any]:
    return {"name": name, "variable": variable}


async def test_a_program_runs_end_to_end() -> None:
    async with serving(FakeEngine(scripted("a bird", "it flies"))) as running:
        session = await Session.open(running, name="demo")
        await session.submit(
            call("c-1", "Tell of {{topic}}: {{text}}", [reads("topic", "v-topic"), writes("text", "v-text")]),
            call("c-2", "{{text}} so {{end}}", [reads("text", "v-text"), writes("end", "v-end")]),
            variables=[{"id": "v-topic", "name": "topic"}],
        )
        assert (await session.send("GET"))[1]["num_pending"] == 2
        assert await session.send("PUT", "/variables/v-topic", {"value": "kea"}) == (200, {})
        found = await session.send("GET", "/variables/v-end?criteria=latency&deadline_s=5")
        assert found == (200, {"id": "v-end", "state": "ready", "value": "it flies"})
        status = (await session.send("GET"))[1]
        assert [row["state"] for row in status["calls"]] == ["done", "done"]
        assert status["name"] == "demo"
        assert await session.send("DELETE") == (200, {})
        assert (await session.send("GET"))[0] == 404


async def test_a_variable_streams_from_its_beginning() -> None:
    async with serving(FakeEngine(scripted("one two three"))) as running:
        session = await Session.open(running)
        running.engine.hold()
        await session.submit(call("c", "go {{x}}", [writes("x", "v")]))
        reading = asyncio.create_task(session.events("v"))
        await asyncio.sleep(0.02)
        running.engine.release()
        events = await reading
        assert [event.name for event in events[-1:]] == ["done"]
        assert "".join(event.data["text"] for event in events[:-1]) == "one two three"
        assert len(events) > 2, "it came in pieces"
        assert await session.events("v") == [StreamEvent("piece", {"text": "one two three"}), StreamEvent("done")]


async def test_many_variables_are_read_in_one_request_as_they_end() -> None:
    engine = FakeEngine(scripted("text"))
    async with serving(engine) as running:
        session = await Session.open(running)
        engine.hold()
        await session.submit(
            call("a", "go {{x}}", [writes("x", "slow")]), variables=[{"id": "later"}, {"id": "now", "value": "here"}]
        )
        body = {"variables": ["slow", "later", "now", "now"], "criteria": "throughput"}
        reading = asyncio.create_task(session.events_of("POST", "/read", body))
        await asyncio.sleep(0.02)
        await session.send("PUT", "/variables/later", {"value": "set"})
        await session.send("POST", "/cancel", {})
        events = await reading
        assert [(event.name, event.data.get("id")) for event in events] == [
            ("value", "now"),
            ("value", "later"),
            ("failure", "slow"),
            ("done", None),
        ]
        assert events[0].data["value"] == "here"
        assert error_from_dict(events[2].data["error"]).code == "cancelled"
        assert (await session.send("POST", "/read", {"variables": ["nope"]}))[0] == 404
        status, content = await session.send("POST", "/read", {"variables": ["now"], "criteria": "cheap"})
        assert (status, content["error"]["param"]) == (400, "criteria")
        engine.release()
        await running.until_idle()


async def test_a_failed_variable_tells_its_error() -> None:
    engine = FakeEngine(scripted("some text"))
    engine.fail_next(EngineFault("broke"), after_tokens=4)
    async with serving(engine) as running:
        session = await Session.open(running)
        await session.submit(call("c", "go {{x}}", [writes("x", "v")]))
        events = await session.events("v")
        assert events[-1].name == "error"
        error = error_from_dict(events[-1].data["error"])
        assert error.code == "call_failed"
        assert isinstance(error.__cause__, EngineFault)
        status, content = await session.send("GET", "/variables/v")
        assert status == 424
        assert error_from_dict(content["error"]).message == error.message
        assert content["error"]["type"] == "call_failed_error"


async def test_calls_are_cancelled() -> None:
    async with serving() as running:
        session = await Session.open(running)
        running.engine.hold()
        await session.submit(call("a", "go {{x}}", [writes("x", "v")]), call("b", "go {{x}}", [writes("x", "w")]))
        assert await session.send("POST", "/cancel", {"call_ids": ["a"]}) == (200, {"cancelled": ["a"]})
        assert (await session.send("GET", "/variables/v"))[1]["error"]["code"] == "cancelled"
        assert await session.send("POST", "/cancel", {}) == (200, {"cancelled": ["b"]})
        await running.until_idle()


async def test_a_deadline_bounds_the_wait_and_the_call_goes_on() -> None:
    async with serving(FakeEngine(scripted("late"))) as running:
        session = await Session.open(running)
        running.engine.hold()
        await session.submit(call("a", "go {{x}}", [writes("x", "v")]))
        status, content = await session.send("GET", "/variables/v?deadline_s=0.01")
        assert (status, content["error"]["code"]) == (408, "deadline_exceeded")
        running.engine.release()
        assert (await session.send("GET", "/variables/v"))[1]["value"] == "late"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/calls", {"calls": [{"id": "c"}]}, 400, "calls[0]"),
        ("POST", "/calls", {"calls": [], "extra": 1}, 400, "extra"),
        ("POST", "/calls", {"calls": 3}, 400, "calls"),
        ("POST", "/calls", [], 400, "body"),
        ("GET", "/variables/nope", None, 404, "variable"),
        ("GET", "/variables/nope/stream", None, 404, "variable"),
        ("GET", "/variables/v?criteria=fast", None, 400, "criteria"),
        ("GET", "/variables/v?deadline_s=-1", None, 400, "deadline_s"),
        ("GET", "/variables/v?deadline_s=nan", None, 400, "deadline_s"),
        ("PUT", "/variables/v", {"value": 3}, 400, "value"),
        ("PUT", "/variables/v", {}, 400, "value"),
        ("POST", "/cancel", {"call_ids": ["nope"]}, 404, "call_ids"),
        ("PATCH", "", {}, 405, "method"),
    ],
)
async def test_wrong_requests_name_what_is_wrong(method: str, path: str, body: Any, status: int, param: str) -> None:
    async with serving() as running:
        session = await Session.open(running)
        found, content = await session.send(method, path, body)
        assert (found, status) == (status, found), content
        assert param in content["error"]["param"]


async def test_what_contradicts_the_session_names_its_place() -> None:
    async with serving() as running:
        session = await Session.open(running)
        await session.submit(call("a", "{{x}}", [writes("x", "v")]), variables=[{"id": "w", "value": "set"}])
        for method, path, body, param in (
            ("PUT", "/variables/w", {"value": "again"}, "variable"),
            ("PUT", "/variables/v", {"value": "mine"}, "variable"),
            ("POST", "/calls", {"calls": [call("b", "{{x}}", [writes("x", "w")])]}, "calls"),
            ("POST", "/calls", {"calls": [call("b", "{{y}}{{x}}", [writes("x", "u"), reads("y", "u")])]}, "calls"),
        ):
            status, content = await session.send(method, path, body)
            assert status in (400, 409)
            assert content["error"]["param"] == param, content


async def test_the_secret_is_always_needed() -> None:
    async with serving() as running:
        session = await Session.open(running)
        own = session.headers
        wrong: list[dict[str, Any]] = [{}, {"X-Kea-Session-Secret": "wrong"}, {"X-Kea-Session-Secret": b"\xc3\xa9"}]
        for headers in wrong:
            session.headers = headers
            assert (await session.send("GET"))[0] == 403
            assert (await session.send("POST", "/calls", {"calls": []}))[0] == 403
            assert (await session.send("DELETE"))[0] == 403
        session.headers = own
        assert (await session.send("GET"))[0] == 200


async def test_another_keys_session_is_not_there() -> None:
    keys = (ApiKey("a", "secret-of-a"), ApiKey("b", "secret-of-b"))
    async with serving(config=ServerConfig(port=0, api_keys=keys), api_key="secret-of-a") as running:
        session = await Session.open(running)
        session.headers["authorization"] = "Bearer secret-of-b"
        assert (await session.send("GET"))[0] == 404
        session.headers["authorization"] = "Bearer nonsense"
        assert (await session.send("GET"))[0] == 401
        session.headers["authorization"] = "Bearer secret-of-a"
        assert (await session.send("GET"))[0] == 200


async def test_a_reader_that_leaves_is_forgotten() -> None:
    async with serving() as running:
        session = await Session.open(running)
        running.engine.hold()
        await session.submit(call("a", "go {{x}}", [writes("x", "v")]))
        reading = asyncio.create_task(session.events("v"))
        waiting = asyncio.create_task(session.send("GET", "/variables/v"))
        await asyncio.sleep(0.05)
        assert running.state.lifecycle.num_running == 2
        reading.cancel()
        waiting.cancel()
        async with asyncio.timeout(5):
            while running.state.lifecycle.num_running:  # noqa: ASYNC110 - it notifies nobody
                await asyncio.sleep(0.005)
        running.engine.release()


async def test_comments_keep_a_silent_stream_alive() -> None:
    release = asyncio.Event()

    async def frames() -> Any:
        yield b"a"
        await release.wait()
        yield b"b"

    seen = []
    async for frame in with_keep_alive(frames(), 0.01):
        seen.append(frame)
        if seen[-2:] == [b":\n\n", b":\n\n"]:
            release.set()
    assert seen[0] == b"a"
    assert seen[-1] == b"b"
    assert set(seen[1:-1]) == {b":\n\n"}


def test_the_header_is_the_documented_one() -> None:
    assert "X-Kea-Session-Secret".lower() == sessions.SECRET_HEADER


async def test_calls_of_a_client_that_vanished_are_cancelled_unless_it_said_so() -> None:
    engine = FakeEngine()
    engine.hold()
    config = ServerConfig(port=0, limits=Limits(session_lease_s=1.0))
    async with serving(engine, config) as running:
        gone, detached, alive = [await Session.open(running, detached=detached) for detached in (False, True, False)]
        for session in (gone, detached, alive):
            await session.submit(call("c", "hi {{x}}", [writes("x", "v")]))
        for _ in range(10):
            await asyncio.sleep(0.25)
            assert await alive.send("POST", "/renew") == (200, {})
        answers = {session: await session.send("GET") for session in (gone, detached, alive)}
        assert [answers[session][1]["calls"][0]["state"] for session in answers] == ["cancelled", "running", "running"]
        status, answer = await gone.send("GET", "/variables/v")
        assert status == 409
        assert "its session had no request and no reader for 1 s" in answer["error"]["message"]


@pytest.mark.parametrize(("config", "body", "lease_s"), [(60, {}, 60), (7, {}, 7), (60, {"detached": True}, None)])
async def test_a_session_tells_its_lease(config: float, body: dict[str, Any], lease_s: float | None) -> None:
    limits = Limits(session_lease_s=config)
    async with serving(config=ServerConfig(port=0, limits=limits)) as running:
        answer = (await running.http.post("/v1/sessions", json=body)).json()
        assert answer["lease_s"] == lease_s
        async with connect(running.url) as session:  # ends at once, without waiting for its next heartbeat
            assert not (await session.astatus()).calls


async def test_keas_own_client_renews_its_lease() -> None:
    engine = FakeEngine(scripted("written"))
    engine.hold()
    config = ServerConfig(port=0, limits=Limits(session_lease_s=1.0))
    async with serving(engine, config) as running, connect(running.url) as session:
        variable = hello()
        await asyncio.sleep(2.5)
        assert [row.state.value for row in (await session.astatus()).calls] == ["running"]
        engine.release()
        assert await variable.aget() == "written"
