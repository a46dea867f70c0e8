"""The OpenAPI document: made from the endpoints, complete, without loose ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kea.server.config import ServerConfig
from kea.server.openapi import create_document
from kea.server.routes import choose_endpoints
from tests.server.support import serving

DOCUMENT = create_document(choose_endpoints(ServerConfig(), with_programs=True), "1.2.3")
PATHS = {
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/{response_id}/cancel",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/v1/sessions",
    "/v1/sessions/{session_id}/calls",
    "/v1/sessions/{session_id}/read",
    "/v1/sessions/{session_id}/variables/{variable_id}/stream",
    "/v1/semantic_call",
    "/v1/semantic_var/{variable_id}",
    "/v1/py_native_call",
}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_the_public_paths_are_there() -> None:
    assert set(DOCUMENT["paths"]) >= PATHS
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    found = set(references(DOCUMENT))
    assert found
    assert {reference.rpartition("/")[2] for reference in found} <= set(schemas)


def test_every_operation_says_what_it_answers() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert {"summary", "operationId", "responses"} <= set(operation), (method, path)
            assert {"400", "404", "500"} <= set(operation["responses"])
            named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}


def test_a_body_is_required_where_it_has_a_required_field() -> None:
    def is_needed(path: str) -> bool:
        return bool(DOCUMENT["paths"][path]["post"]["requestBody"]["required"])

    assert is_needed("/v1/completions")
    assert not is_needed("/v1/sessions")


def test_routes_that_are_off_are_not_in_it() -> None:
    config = ServerConfig(parrot_routes=False)
    paths = create_document(choose_endpoints(config, with_programs=True), "0")["paths"]
    assert not any("semantic" in path for path in paths)
    paths = create_document(choose_endpoints(config, with_programs=False), "0")["paths"]
    assert not any("sessions" in path for path in paths)


async def test_it_is_served() -> None:
    async with serving() as running:
        served = (await running.http.get("/openapi.json")).json()
        assert set(served["paths"]) == set(DOCUMENT["paths"])
        assert json.dumps(served["components"]) == json.dumps(DOCUMENT["components"])
