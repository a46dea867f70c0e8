"""Web pages: kept out unless their origin is allowed, then through every route; and strangers' names of a server."""

from __future__ import annotations

import pytest

from kea.errors import InvalidRequest
from kea.server.config import ApiKey, ServerConfig, WebConfig
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import serving

PAGE = "https://app.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_a_page_that_is_allowed_may_ask_and_stream() -> None:
    config = ServerConfig(port=0, web=WebConfig(allowed_origins=(PAGE,)))
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
        WebConfig(allowed_origins=(origin,))


@pytest.mark.parametrize("origin", ["*", "null", PAGE, "http://localhost:3000", "chrome-extension://abc"])
def test_origins(origin: str) -> None:
    assert WebConfig(allowed_origins=(origin,)).allowed_origins == (origin,)


KEY = "secret-of-a"
KEYS = (ApiKey("a", KEY),)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.7", ""])
async def test_a_server_without_keys_is_not_asked_under_a_strangers_name(host: str) -> None:
    async with serving() as running:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/sessions"), ("GET", "/metrics"), ("GET", "/none")):
            refused = await running.http.request(method, path, headers={"host": host})
            assert refused.status_code == 403, path
            assert refused.json()["error"]["code"] == "permission_denied"
            assert refused.json()["error"]["param"] == "Host"
            assert "--allowed-hosts" in refused.json()["error"]["message"]
        assert running.state.service.snapshot().num_sessions == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:80", "127.0.0.1:1", "[::1]:8000", "127.1.2.3"])
async def test_names_of_this_machine_are_its_own(host: str) -> None:
    async with serving() as running:
        assert (await running.http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("config", "status"),
    [
        (ServerConfig(port=0, api_keys=KEYS), 200),
        (ServerConfig(port=0, host="0.0.0.0", insecure=True), 200),
        (ServerConfig(port=0, web=WebConfig(allowed_hosts=("kea.example",))), 200),
        (ServerConfig(port=0, web=WebConfig(allowed_hosts=("*",))), 200),
        (ServerConfig(port=0, web=WebConfig(allowed_hosts=("other.example",))), 403),
        (ServerConfig(port=0, api_keys=KEYS, web=WebConfig(allowed_hosts=("other.example",))), 403),
        (ServerConfig(port=0, host="0.0.0.0", insecure=True, web=WebConfig(allowed_hosts=("a.example",))), 403),
    ],
)
async def test_names_that_are_allowed(config: ServerConfig, status: int) -> None:
    async with serving(config=config, api_key=KEY) as running:
        url = f"http://127.0.0.1:{running.url.rpartition(':')[2]}/v1/models"
        assert (await running.http.get(url, headers={"host": "kea.example:8000"})).status_code == status


@pytest.mark.parametrize("host", ["Kea.example", "kea.example:80", "http://kea.example", "", "*.example", "a b"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequest, match="allowed_hosts has"):
        WebConfig(allowed_hosts=(host,))


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
async def test_a_strangers_page_makes_nothing_run_without_keys(headers: dict[str, str]) -> None:
    async with serving() as running:
        for path, content in (("/v1/sessions", b""), ("/v1/session", b""), ("/v1/completions", b'{"prompt": "x"}')):
            simple = {**headers, "content-type": "text/plain"}
            refused = await running.http.post(path, content=content, headers=simple)
            assert (refused.status_code, refused.json()["error"]["param"]) == (403, "Origin"), path
        assert running.state.service.snapshot().num_sessions == 0
        assert running.engine.record.prompts == []


async def test_a_text_is_no_json_whoever_sends_it() -> None:
    async with serving() as running:
        refused = await running.http.post(
            "/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Content-Type")
        assert running.engine.record.prompts == []


async def test_pages_of_the_server_and_pages_with_a_key_may_ask() -> None:
    async with serving() as running:
        for headers in ({"origin": running.url}, {"origin": "https://proxy.example", "sec-fetch-site": "same-origin"}):
            assert (await running.http.post("/v1/sessions", headers=headers)).status_code == 201
    async with serving(config=ServerConfig(port=0, api_keys=KEYS), api_key=KEY) as running:
        assert (await running.http.post("/v1/sessions", headers={"origin": PAGE})).status_code == 201
    async with serving(config=ServerConfig(port=0, web=WebConfig(allowed_origins=("*",)))) as running:
        assert (await running.http.post("/v1/sessions", headers={"origin": PAGE})).status_code == 201
