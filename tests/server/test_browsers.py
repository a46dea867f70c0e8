"""Scripts of web pages: kept out unless their origin is allowed, and then through every route."""

from __future__ import annotations

import pytest

from kea.errors import InvalidRequest
from kea.server.config import ServerConfig
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import serving

PAGE = "https://app.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_a_page_that_is_allowed_may_ask_and_stream() -> None:
    config = ServerConfig(port=0, allowed_origins=(PAGE,))
    async with serving(FakeEngine(scripted("done")), config) as running:
        asked = await running.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        body = {"prompt": "x", "stream": True}
        answer = await running.http.post("/v1/completions", json=body, headers={"origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.text.endswith("data: [DONE]\n\n")
        wrong = await running.http.post("/v1/completions", json={}, headers={"origin": PAGE})
        assert wrong.status_code == 400
        assert wrong.headers["access-control-allow-origin"] == PAGE
        stranger = await running.http.options(
            "/v1/completions", headers={**PREFLIGHT, "origin": "https://evil.example"}
        )
        assert stranger.status_code == 400
        assert "access-control-allow-origin" not in stranger.headers


async def test_no_page_may_ask_by_default() -> None:
    async with serving() as running:
        asked = await running.http.options("/v1/completions", headers=PREFLIGHT)
        assert asked.status_code == 405
        assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize(
    "origin", ['["*"]', "app.example", "https://app.example/", "", "https://a.example,https://b.example"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(InvalidRequest, match="allowed_origins has"):
        ServerConfig(allowed_origins=(origin,))


@pytest.mark.parametrize("origin", ["*", "null", PAGE, "http://localhost:3000", "chrome-extension://abc"])
def test_origins(origin: str) -> None:
    assert ServerConfig(allowed_origins=(origin,)).allowed_origins == (origin,)
