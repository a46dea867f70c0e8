"""What a request leaves out is the server's default, what it names is its own, on every route of OpenAI's form."""

from __future__ import annotations

from typing import Any

import pytest

from kea.server.config import ServerConfig
from kea.types import Sampling
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import serving

DEFAULT = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.1)
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_the_default_fills_what_is_left_out(path: str) -> None:
    engine = FakeEngine(scripted("done"))
    async with serving(engine, ServerConfig(port=0, default_sampling=DEFAULT)) as running:
        left_out = await running.http.post(path, json=ROUTES[path])
        null = await running.http.post(path, json={**ROUTES[path], "temperature": None})
        given = await running.http.post(
            path, json={**ROUTES[path], "temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1}
        )
        assert [reply.status_code for reply in (left_out, null, given)] == [200, 200, 200]
    assert [options.sampling for options in engine.record.options] == [
        DEFAULT,
        DEFAULT,
        Sampling(temperature=0.0, min_p=0.05),
    ]
    if path == "/v1/responses":
        told = [(reply.json()["temperature"], reply.json()["top_p"]) for reply in (left_out, given)]
        assert told == [(0.6, 0.95), (0, 1)]


async def test_without_a_default_all_is_neutral() -> None:
    engine = FakeEngine(scripted("done"))
    async with serving(engine) as running:
        await running.http.post("/v1/completions", json={"prompt": "x"})
    assert engine.record.options[0].sampling == Sampling()
