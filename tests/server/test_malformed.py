"""More than a thousand kinds of malformed input, made from the OpenAPI document: no 500, no hang, no leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kea.server.config import Limits, ServerConfig
from kea.server.openapi import create_document
from kea.server.routes import choose_endpoints
from tests.fakes.engine import FakeEngine, scripted
from tests.server.schemas import JUNK, TEXT, from_schema, spoiled
from tests.server.support import Live, serving_on_a_thread

REPLY = '<think>a</think>b <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
DOCUMENT = create_document(choose_endpoints(ServerConfig(), with_programs=True), "0")
SESSION = "{session_id}"


@dataclass(frozen=True)
class Case:
    """A request to send. `SESSION` in the path or body stands for a session that is open."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]


def cases() -> st.SearchStrategy[Case]:
    """Operations with a body are drawn more often: that is where input can be wrong in many ways."""
    weighted = [item for item in operations() for _ in range(8 if "requestBody" in item[2] else 1)]
    return st.sampled_from(weighted).flatmap(lambda item: of_operation(*item))


@st.composite
def of_operation(draw: st.DrawFn, method: str, path: str, operation: dict[str, Any]) -> Case:
    definitions = DOCUMENT["components"]["schemas"]
    body = b""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = draw(spoiled(from_schema(schema, definitions)))
    for parameter in operation["parameters"]:
        name = parameter["name"]
        if parameter["in"] == "path" and name != "session_id":
            path = path.replace(f"{{{name}}}", draw(st.sampled_from(["v", "nope", "%00", "..%2f", "%ff", "x" * 300])))
        elif parameter["in"] == "path" and draw(st.booleans()):
            path = path.replace(f"{{{name}}}", draw(st.sampled_from(["0", "-1", "1e3", "9" * 40, "%20", "session"])))
        elif parameter["in"] == "query" and draw(st.booleans()):
            path += (
                ("&" if "?" in path else "?") + f"{name}=" + draw(st.sampled_from(["1", "-1", "nan", "true", "%ff"]))
            )
    headers = [("x-request-id", draw(st.sampled_from(["a", "b" * 500, "!"])))] if draw(st.booleans()) else []
    kind = draw(st.sampled_from(["application/json"] * 8 + ["text/plain", "application/json; charset=latin-1"]))
    return Case(method, path, body, (*headers, ("content-type", kind)))


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """Run one server for all requests; at its end nothing may be left."""
    config = ServerConfig(
        port=0,
        tool_call_parser="hermes",
        reasoning_parser="think",
        limits=Limits(max_body_bytes=20_000),
        shutdown_grace_s=5,
    )
    with serving_on_a_thread(FakeEngine(scripted(REPLY), max_model_len=2000), config) as live:
        yield live


SEEN: Counter[int] = Counter()


@settings(max_examples=1200, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_every_request_is_answered_and_none_breaks_the_server(live: Live, case: Case) -> None:
    session = live.http.post("/v1/sessions", json={}).json()
    path = case.path.replace(SESSION, str(session["session_id"]))
    secret = ("x-kea-session-secret", session["session_secret"])
    response = live.http.request(case.method, path, content=case.body, headers=[*case.headers, secret])
    SEEN[response.status_code] += 1
    assert response.status_code < 500, response.text[:500]
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["type"]
    live.http.delete(f"/v1/sessions/{session['session_id']}", headers=[secret])


def test_nothing_is_left_of_them(live: Live) -> None:
    assert live.http.get("/health").status_code == 200
    live.call(live.running.until_idle())
    live.running.state.service.check()
    assert SEEN.total() > 1000
    assert SEEN[200] > 50, "some requests were good enough to be answered"
    assert SEEN[400] > 300, "and many were refused"


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(junk=st.lists(st.tuples(TEXT, JUNK), max_size=3))
def test_junk_beside_a_valid_request_never_breaks_it(live: Live, junk: list[tuple[str, Any]]) -> None:
    response = live.http.post("/v1/completions", json={**dict(junk), "prompt": "x"})
    assert response.status_code in (200, 400), response.text


def test_every_operation_is_tried() -> None:
    assert len(operations()) >= 30
    identifiers = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(identifiers)) == len(identifiers)
