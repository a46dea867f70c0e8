"""An engine that is given up ends `kea serve`: what waits is answered, and the exit status tells a supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kea.cli.serving import run_while_answered
from kea.errors import EngineDied, KeaError
from kea.server.app import create_app
from kea.server.config import ServerConfig
from kea.server.run import Server
from kea.service import Service
from tests.cli.support import children_of, is_running, serve
from tests.fakes.engine import FakeEngine
from tests.server.support import ChatTokenizer

OPTIONS = {"max_tokens": 8, "temperature": 0}


async def test_what_waits_is_answered_and_the_reason_is_raised() -> None:
    tokenizer = ChatTokenizer()
    engine = FakeEngine(tokenizer=tokenizer)
    loop = asyncio.get_running_loop()
    given_up: asyncio.Future[KeaError] = loop.create_future()
    url: asyncio.Future[str] = loop.create_future()
    async with Service([engine], tokenizer) as service:
        app = create_app(ServerConfig(port=0), engine, tokenizer, service)
        server = Server(app, lambda ready: url.set_result(ready.url), handles_signals=False)
        running = asyncio.create_task(run_while_answered(server, given_up))
        async with httpx2.AsyncClient(base_url=await url, timeout=20, verify=False) as http:
            engine.hold()
            created = (await http.post("/v1/sessions")).json()
            path, secret = f"/v1/sessions/{created['session_id']}", created["session_secret"]
            headers = {"x-kea-session-secret": secret}
            await http.post(f"{path}/calls", json={"variables": [{"id": "x", "name": "x"}]}, headers=headers)
            answers: list[asyncio.Task[Any]] = [
                asyncio.create_task(http.get(f"{path}/variables/x", headers=headers)),
                asyncio.create_task(http.post("/v1/completions", json={"prompt": "x", **OPTIONS})),
            ]
            while app.state.kea.lifecycle.num_running < 2:  # noqa: ASYNC110 - it notifies nobody
                await asyncio.sleep(0.005)
            began_s = time.monotonic()
            given_up.set_result(EngineDied("it is given up"))
            statuses = [(await asyncio.wait_for(answer, 10)).status_code for answer in answers]
            assert statuses == [503, 503]
            with pytest.raises(EngineDied, match="it is given up"):
                await asyncio.wait_for(running, 10)
            assert time.monotonic() - began_s < 10, "the grace of an ordinary end was waited for"
        engine.release()


async def test_an_ordinary_end_raises_nothing() -> None:
    tokenizer = ChatTokenizer()
    engine = FakeEngine(tokenizer=tokenizer)
    given_up: asyncio.Future[KeaError] = asyncio.get_running_loop().create_future()
    server = Server(
        create_app(ServerConfig(port=0), engine, tokenizer), lambda ready: server.stop(), handles_signals=False
    )
    await asyncio.wait_for(run_while_answered(server, given_up), 10)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_server_whose_engine_dies_again_and_again_ends_with_status_1(stories260k: Path) -> None:
    killed: set[int] = set()
    with serve(str(stories260k), "--kv-memory", "8MiB") as server:
        deadline_s = time.monotonic() + 150
        while server.process.poll() is None and time.monotonic() < deadline_s:
            for pid in set(children_of(server.process.pid)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.05)
        assert server.process.wait(30) == 1
        assert server.process.stderr is not None
        said = server.process.stderr.read().splitlines()
    assert said[-1].startswith("error: The engine died 6 times within 600 s and is given up")
    assert not any(is_running(pid) for pid in killed)
