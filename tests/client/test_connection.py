from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

import kea
from kea.client import http
from kea.client.http import HttpChannel, HttpTransport
from kea.errors import Conflict, DeadlineExceeded, InvalidRequest, KeaError, ModelLoadFailed, Unreachable
from kea.program.call import Program
from kea.program.events import StreamEvent
from kea.service import Service
from tests.client.worlds import embedded_world
from tests.fakes.tokenizer import FakeTokenizer

MISSING = True


@asynccontextmanager
async def failing_service() -> AsyncIterator[Service]:
    if MISSING:
        raise ModelLoadFailed("no such model")
    yield Service([], FakeTokenizer())


def num_threads() -> int:
    return sum(thread.name == "kea-client" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["http://x"], {"model": "m"}, "url is given together"),
        (["http://x"], {"service": failing_service}, "url is given together"),
        (["localhost:8000"], {}, "must begin with http:// or https://"),
        ([], {"api_key": "k"}, "api_key is given without url"),
        ([], {"service": failing_service, "model": "m"}, "service is given together"),
    ],
)
def test_contradicting_options_are_refused(arguments: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        kea.connect(*arguments, **options)


def test_a_service_that_does_not_start_leaves_no_thread() -> None:
    with pytest.raises(ModelLoadFailed, match="no such model"), kea.connect(service=failing_service):
        raise AssertionError("the session was opened")
    assert num_threads() == 0


async def test_nor_when_awaited() -> None:
    with pytest.raises(ModelLoadFailed, match="no such model"):
        await kea.connect(service=failing_service).aopen()
    assert num_threads() == 0


def test_a_server_that_is_not_there_is_named() -> None:
    session = kea.connect("http://127.0.0.1:9", api_key="k")
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9/? does not answer") as caught:
        session.open()
    assert caught.value.retryable
    assert num_threads() == 0


def test_a_session_that_is_not_open_says_so() -> None:
    session = kea.connect("http://127.0.0.1:9")
    with pytest.raises(InvalidRequest, match="not open"):
        session.variable("x")
    with pytest.raises(InvalidRequest, match="not open"):
        session.status()


def test_sessions_nest_and_leave_what_was_before() -> None:
    @kea.function
    def f(out: kea.Output):  # type: ignore[no-untyped-def]
        """p{{out}}"""

    with embedded_world() as world:
        with world.session() as outer:
            with world.session() as inner:
                assert f().session is inner
            assert f().session is outer
        assert isinstance(f(), kea.Rendered)
    assert num_threads() == 0


def answering(status: int, **content: Any) -> HttpChannel:
    """A channel to a server that answers everything alike."""
    transport = httpx2.MockTransport(lambda request: httpx2.Response(status, **content))
    return HttpChannel(httpx2.AsyncClient(transport=transport, base_url="http://host"), 7, "secret")


async def test_a_variable_is_asked_for_again_and_again() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.params["deadline_s"])
        if len(asked) < 3:
            return httpx2.Response(408, json={"error": DeadlineExceeded("not yet", param="deadline_s").to_dict()})
        return httpx2.Response(200, json={"id": "v", "state": "ready", "value": "there"})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://host")
    channel = HttpChannel(client, 7, "secret")
    assert await channel.get("v", None, None) == "there"
    assert asked == [str(http.POLL_S)] * 3
    del asked[:]
    with pytest.raises(DeadlineExceeded, match="not yet"):
        await channel.get("v", None, 1.5)
    assert asked == ["1.5"]


async def test_an_error_of_the_server_keeps_its_class() -> None:
    error = Conflict("taken", param="x")
    with pytest.raises(Conflict, match="taken"):
        await answering(409, json={"error": error.to_dict() | {"type": "other"}}).submit(Program())


@pytest.mark.parametrize("content", [{"text": "<html>bad gateway"}, {"json": {"detail": "x"}}, {"json": ["x"]}, {}])
async def test_an_answer_of_something_else_is_told_as_it_is(content: dict[str, Any]) -> None:
    with pytest.raises(KeaError, match="answered with status 502"):
        await answering(502, **content).status()


async def test_an_answer_that_is_no_object_is_refused() -> None:
    with pytest.raises(KeaError, match="no JSON object"):
        await answering(200, json=[]).cancel(None)


async def test_a_stream_that_ends_early_is_an_error() -> None:
    channel = answering(200, text='event: piece\ndata: {"text": "a"}\n\n')
    pieces = channel.stream("v", None)
    assert await anext(pieces) == "a"
    with pytest.raises(Unreachable, match="ended before"):
        await anext(pieces)


async def test_many_readers_share_a_request() -> None:
    paths: list[str] = []
    is_late, are_both_here = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path.rpartition("/")[2])
        if len(paths) == 2:
            are_both_here.set()
        await is_late.wait()
        if request.method == "GET":
            return httpx2.Response(200, json={"id": "v0", "state": "ready", "value": "v0"})
        ids = json.loads(request.content)["variables"]
        events = [*(StreamEvent("value", {"id": item, "value": item}) for item in ids), StreamEvent("done")]
        return httpx2.Response(200, content=b"".join(event.encode() for event in events))

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://host")
    channel = HttpChannel(client, 7, "secret")
    reads = [asyncio.create_task(channel.get(f"v{idx}", None, None)) for idx in range(1000)]
    await asyncio.wait_for(are_both_here.wait(), 10)
    is_late.set()
    assert await asyncio.gather(*reads) == [f"v{idx}" for idx in range(1000)]
    assert paths == ["v0", "read"]


async def test_closing_a_session_that_is_gone_is_no_error() -> None:
    await answering(404, json={"error": {"code": "not_found", "message": "gone"}}).close()
    with pytest.raises(Conflict):
        await answering(409, json={"error": {"code": "conflict", "message": "x"}}).close()


async def test_the_address_may_end_in_v1_or_a_slash() -> None:
    transport = HttpTransport("http://host:1/v1/")
    await transport.open()
    assert transport._client is not None
    assert str(transport._client.base_url) in {"http://host:1", "http://host:1/"}
    await transport.close()


async def test_the_loop_of_an_author_stays_free() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    @kea.function
    def f(out: kea.Output):  # type: ignore[no-untyped-def]
        """p{{out}}"""

    ticking = asyncio.create_task(tick())
    with embedded_world() as world:
        async with world.session():
            world.on_loop(world.engine.hold)
            reading = asyncio.create_task(f().aget())
            await asyncio.sleep(0.05)
            world.on_loop(world.engine.release)
            assert await reading == "P"
    ticking.cancel()
    assert ticks > 3


async def test_a_peer_that_vanished_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "getproxies", lambda: {"no": "localhost"})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        transport = HttpTransport(f"http://{host}:{port}")
        await transport.open()
        assert transport._client is not None
        async with transport._client.stream("GET", "/") as response:
            used = response.extensions["network_stream"].get_extra_info("socket")
            assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == http.SILENCE_S[0]
        await transport.close()
