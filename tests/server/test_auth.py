"""Keys, tenants, and where a server without keys may listen."""

from __future__ import annotations

import hmac
from typing import Any

import openai
import pytest

from kea.errors import AuthenticationFailed, InvalidRequest
from kea.server.auth import Authenticator
from kea.server.config import ApiKey, Limits, ServerConfig, is_loopback
from tests.server.support import serving

KEYS = (ApiKey("a", "secret-of-a"), ApiKey("b", "secret-of-b"))


def test_a_key_names_its_tenant() -> None:
    auth = Authenticator(KEYS)
    assert auth.tenant_of_header("Bearer secret-of-a") == "a"
    assert auth.tenant_of_header("bearer  secret-of-b") == "b"
    assert Authenticator(()).tenant_of_header(None) == ""


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer secret-of-c", "Basic secret-of-a", "secret-of-a", "Bearer \udc80"],
)
def test_wrong_keys_are_refused(header: str | None) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        Authenticator(KEYS).tenant_of_header(header)
    assert caught.value.param == "Authorization"


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append(expected)
        return given == expected

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert Authenticator(KEYS).tenant_of_key("secret-of-a") == "a"
    assert compared == [b"secret-of-a", b"secret-of-b"]


def test_bare_keys_are_named_by_their_digest() -> None:
    key = ApiKey.from_secret("secret-of-a")
    assert key.key_id.startswith("key-")
    assert key == ApiKey.from_secret("secret-of-a")
    assert "secret" not in repr(key)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ApiKey("", "long-enough"),
        lambda: ApiKey("a", "short"),
        lambda: ApiKey("a", "has a space in it"),
        lambda: ApiKey("a", "ünicode-key"),
        lambda: ServerConfig(api_keys=(ApiKey("a", "long-enough"), ApiKey("a", "also-long-enough"))),
        lambda: ServerConfig(host="0.0.0.0"),
        lambda: ServerConfig(host="::"),
        lambda: ServerConfig(host="example.org"),
        lambda: ServerConfig(port=70_000),
        lambda: Limits(max_body_bytes=0),
    ],
)
def test_wrong_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest):
        wrong()


def test_a_reachable_address_needs_keys_or_the_word_insecure() -> None:
    assert ServerConfig(host="0.0.0.0", api_keys=KEYS).host == "0.0.0.0"
    assert ServerConfig(host="0.0.0.0", insecure=True).insecure
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "::", "localhost.evil.org", "")] == [False] * 5


async def test_routes_need_a_key_and_share_nothing_between_tenants() -> None:
    config = ServerConfig(port=0, api_keys=KEYS)
    async with serving(config=config, api_key="secret-of-a") as running:
        await running.openai.completions.create(model="fake", prompt="x")
        other = running.openai.with_options(api_key="secret-of-b")
        await other.completions.create(model="fake", prompt="x")
        assert [spec.tenant for spec in running.engine.record.specs] == ["a", "b"]
        with pytest.raises(openai.AuthenticationError):
            await running.openai.with_options(api_key="wrong").models.list()
        for path in ("/health", "/ping", "/version", "/metrics", "/openapi.json"):
            assert (await running.http.get(path, headers={"authorization": ""})).status_code == 200
        for path in ("/v1/completions", "/tokenize", "/v1/sessions", "/v1/responses"):
            response = await running.http.post(path, json={}, headers={"authorization": ""})
            assert response.status_code == 401, path
