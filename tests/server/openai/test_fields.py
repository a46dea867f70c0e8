"""Errors call a field as the request does, whatever it is called behind the door."""

from __future__ import annotations

import pytest

from kea.errors import InvalidRequest
from tests.fakes.engine import FakeEngine
from tests.server.support import serving


async def test_a_token_below_zero_is_told_as_that() -> None:
    async with serving() as running:
        response = await running.http.post("/v1/completions", json={"model": "fake", "prompt": [-1]})
    error = response.json()["error"]
    assert error["message"] == "prompt[0] is -1: Input should be greater than or equal to 0."
    assert error["param"] == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}),
        ("structured_outputs", {"json": {"type": "nope"}}),
        ("guided_json", {"type": "nope"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_schema_is_told_with_the_field_of_the_request(field: str, value: object, stream: bool) -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        engine.fail_next(InvalidRequest("json_schema cannot be compiled", param="json_schema"))
        body = {"model": "fake", "prompt": "x", field: value, "stream": stream}
        response = await running.http.post("/v1/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)
