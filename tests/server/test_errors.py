"""Errors on the wire: the table is complete, the shapes are those that clients read."""

from __future__ import annotations

import json

import openai
import pytest

from kea import errors
from kea.server.errors import WIRE, Dialect, as_kea_error, error_body, error_response, wire_of
from tests.fakes.engine import FakeEngine
from tests.server.support import serving


def make(cls: type[errors.KeaError]) -> errors.KeaError:
    return cls("It broke.", hint="Mend it.", param="x")


def test_the_table_has_every_class_and_no_other() -> None:
    assert set(WIRE) == set(errors.all_error_classes())


@pytest.mark.parametrize("cls", list(errors.all_error_classes()))
def test_every_class_has_its_status_and_type(cls: type[errors.KeaError]) -> None:
    error = make(cls)
    response = error_response(error)
    assert response.status_code == WIRE[cls].status
    assert 400 <= response.status_code < 600
    assert (response.status_code >= 500 or response.status_code == 429) or not error.retryable
    body = json.loads(bytes(response.body))
    assert body == {"error": {"message": "It broke. Mend it.", "type": WIRE[cls].type, "param": "x", "code": cls.code}}


def test_a_subclass_is_answered_like_its_parent() -> None:
    class Odd(errors.Conflict):
        pass

    assert wire_of(Odd("x")) == WIRE[errors.Conflict]


def test_what_is_too_large_for_ever_is_no_rate_limit() -> None:
    assert wire_of(errors.LimitExceeded("x")).status == 429
    assert wire_of(errors.LimitExceeded("x", retryable=False)).status == 413


def test_headers_tell_clients_whether_to_try_again() -> None:
    dead = error_response(errors.EngineDied("x"))
    assert (dead.headers["retry-after"], dead.headers["x-should-retry"]) == ("1", "true")
    wrong = error_response(errors.Conflict("x"))
    assert "retry-after" not in wrong.headers
    assert wrong.headers["x-should-retry"] == "false"
    assert error_response(errors.AuthenticationFailed("x")).headers["www-authenticate"] == "Bearer"


def test_dialects_add_what_their_clients_need() -> None:
    error = make(errors.CallFailed)
    error.__cause__ = make(errors.EngineDied)
    own = error_body(error, Dialect.KEA)["error"]
    assert errors.error_from_dict(own).to_dict() == error.to_dict()
    parrot = error_body(error, Dialect.PARROT)
    assert parrot == {**error_body(error), "traceback": ""}


def test_a_bug_is_answered_without_its_details() -> None:
    error = as_kea_error(RuntimeError("the password is 1234"))
    assert error.code == "engine_fault"
    assert "1234" not in json.dumps(error_body(error))


async def test_errors_of_the_engine_reach_the_client() -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        engine.fail_next(errors.EngineFault("step 7 broke"))
        with pytest.raises(openai.InternalServerError, match="step 7 broke"):
            await running.openai.completions.create(model="fake", prompt="x")
        engine.fail_next(errors.InvalidRequest("The schema is wrong.", param="response_format"))
        with pytest.raises(openai.BadRequestError) as caught:
            await running.openai.completions.create(model="fake", prompt="x", stream=True)
        assert caught.value.param == "response_format"
        text = (await running.http.get("/metrics")).text
        assert 'kea:request_failure_total{code="engine_fault",model_name="fake"} 1.0' in text


async def test_an_error_in_a_stream_is_its_last_word() -> None:
    engine = FakeEngine()
    async with serving(engine) as running:
        engine.fail_next(errors.EngineFault("broke in the middle"), after_tokens=4)
        stream = await running.openai.completions.create(model="fake", prompt="a longer prompt", stream=True)
        assert (await anext(stream)).choices[0].text == "a lo"
        with pytest.raises(openai.APIError, match="broke in the middle"):
            await anext(stream)


async def test_a_bug_in_a_handler_is_a_500_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running:
        monkeypatch.setattr(running.state.model.tokenizer, "encode", lambda *_, **__: 1 / 0)
        response = await running.http.post("/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_fault"
        monkeypatch.undo()
        assert (await running.http.post("/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_what_is_not_there_is_told_in_the_same_shape() -> None:
    async with serving() as running:
        response = await running.http.get("/v1/nothing")
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
        for path in ("/", "/v1/nothing"):
            told = (await running.http.get(path)).json()["error"]["message"]
            assert "/v1/models" in told
            assert "/openapi.json" in told
        response = await running.http.put("/v1/completions", json={})
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.json()["error"]["param"] == "method"
        assert (await running.http.head("/health")).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "param"),
    [
        (b"{", "application/json", "body"),
        (b"\xff\xfe", "application/json", "body"),
        (b'{"prompt": "\\ud800"}', "application/json", "body"),
        (b"[1]", "application/json", "body"),
        (b'{"prompt": "x"}', "text/plain", "Content-Type"),
        (b'{"prompt": "x"}', "", "Content-Type"),
        (b'{"prompt": "x", "temperature": NaN}', "application/json; charset=utf-8", "temperature"),
        (b"", "application/json", "prompt"),
    ],
)
async def test_bodies_that_are_no_json_are_refused(content: bytes, kind: str, param: str) -> None:
    async with serving() as running:
        response = await running.http.post("/v1/completions", content=content, headers={"content-type": kind})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


async def test_request_ids_and_traces_come_back() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serving() as running:
        headers = {"x-request-id": "my-id", "traceparent": trace}
        response = await running.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert (response.headers["x-request-id"], response.headers["traceparent"]) == ("my-id", trace)
        assert response.json()["id"] == "cmpl-my-id"
        response = await running.http.get("/health", headers={"x-request-id": "x" * 200, "traceparent": "nonsense"})
        assert len(response.headers["x-request-id"]) == 32
        assert "traceparent" not in response.headers
        with pytest.raises(openai.NotFoundError) as caught:
            await running.openai.models.retrieve("other")
        assert caught.value.request_id
