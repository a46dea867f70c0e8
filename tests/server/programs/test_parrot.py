"""Parrot's original API: its client's recorded requests, replayed, and its answers read by that client's rules."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kea.errors import EngineFault
from kea.server.config import ApiKey, ServerConfig
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import Serving, serving

SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_gen_length": 512,
    "ignore_tokenizer_eos": False,
    "stop_token_ids": [],
    "stop_str": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "n": 1,
    "best_of": 1,
    "logit_bias": None,
    "repetition_penalty": 0.0,
    "length_penalty": 0.0,
}


@dataclass
class Client:
    """Follows the rules of the original client: no Authorization, JSON bodies also on GET, 200 with an object only."""

    serving: Serving
    session_id: int = 0
    session_auth: str = ""
    var_ids: dict[str, str] = field(default_factory=dict)

    async def send(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        response = await self.serving.http.request(method, f"/v1{path}", json=body, headers={"authorization": ""})
        content = response.json()
        assert isinstance(content, dict)
        if response.status_code != 200:
            assert set(content) == {"error", "traceback"}
            assert isinstance(content["traceback"], str)
            assert isinstance(content["error"]["message"], str)
        return response.status_code, content

    async def succeed(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, content = await self.send(method, path, body)
        assert status == 200, content
        return content

    async def open(self, api_key: str = "1") -> None:
        content = await self.succeed("POST", "/session", {"api_key": api_key})
        assert type(content["session_id"]) is int
        assert type(content["session_auth"]) is str
        self.session_id, self.session_auth = content["session_id"], content["session_auth"]

    @property
    def auth(self) -> dict[str, Any]:
        return {"session_id": self.session_id, "session_auth": self.session_auth}

    async def call(self, template: str, parameters: list[dict[str, Any]], **more: Any) -> dict[str, str]:
        """Submit a call; return the variables of its parameters by name."""
        body = {"session_id": self.session_id, "func_name": "f", "template": template, "parameters": parameters, **more}
        content = await self.succeed("POST", "/semantic_call", body)
        return self.read_call(content, parameters)

    def read_call(self, content: dict[str, Any], parameters: list[dict[str, Any]]) -> dict[str, str]:
        assert type(content["request_id"]) is int
        assert content["session_id"] == self.session_id
        infos = {info["parameter_name"]: info for info in content["param_info"]}
        assert list(infos) == [parameter["name"] for parameter in parameters]
        assert all(type(info["var_id"]) is str for info in infos.values())
        assert [info["is_output"] for info in infos.values()] == [item["is_output"] for item in parameters]
        return {name: info["var_id"] for name, info in infos.items()}

    async def get(self, var_id: str, criteria: str = "latency") -> str:
        content = await self.succeed("GET", f"/semantic_var/{var_id}", {**self.auth, "criteria": criteria})
        return str(content["content"])


def output(name: str, **sampling: Any) -> dict[str, Any]:
    return {"name": name, "is_output": True, "sampling_config": {**SAMPLING, **sampling}}


def given(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "is_output": False, "value": value}


def of(name: str, var_id: str) -> dict[str, Any]:
    return {"name": name, "is_output": False, "var_id": var_id}


async def replay(client: Client, line: dict[str, Any]) -> None:
    """Send a recorded request with this session's ids in the place of the recorded ones, and read its answer."""
    method, path, body = line["method"], line["path"].removeprefix("/v1"), dict(line["json"])
    if path == "/session":
        return await client.open(body["api_key"])
    body |= {key: client.auth[key] for key in ("session_id", "session_auth") if key in body}
    for parameter in body.get("parameters", []):
        if parameter.get("var_id"):
            parameter["var_id"] = client.var_ids["pre" if parameter["is_output"] else "v"]
    if path == "/semantic_var":
        content = await client.succeed(method, path, body)
        client.var_ids[body["var_name"]] = content["var_id"]
    elif path == "/semantic_var/w1":
        assert await client.succeed(method, f"/semantic_var/{client.var_ids['v']}", body) == {}
    elif path == "/semantic_call":
        content = await client.succeed(method, path, body)
        client.var_ids |= client.read_call(content, body["parameters"])
    elif path == "/semantic_var/v_out":
        content = await client.succeed(method, f"/semantic_var/{client.var_ids['out']}", body)
        assert content == {"content": "a res"}, "max_gen_length is 5"
    elif path == "/py_native_call":
        status, content = await client.send(method, path, body)
        assert status == 400
        assert "transform" in content["error"]["message"]
        assert content["error"]["param"] == "func_code"
    else:
        assert (method, path) == ("DELETE", "/session/7")
        assert await client.succeed("DELETE", f"/session/{client.session_id}", body) == {}
    return None


@pytest.fixture
def recorded(parrot_wire: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in parrot_wire.read_text().splitlines()]


async def test_the_recorded_requests_are_answered_as_their_client_expects(recorded: list[dict[str, Any]]) -> None:
    assert len(recorded) == 14
    async with serving(FakeEngine(scripted("a result"))) as running:
        client = Client(running)
        for line in recorded:
            await replay(client, line)
        assert running.state.service.snapshot().num_sessions == 0
        prompts = running.engine.record.prompts
        assert prompts[0] == "Hello content number 3 gives "
        assert prompts[1] == "Hello plain number 3 gives "


async def test_a_chain_runs_on_the_server_and_feeds_variables() -> None:
    async with serving(FakeEngine(scripted("one", "two", "three"))) as running:
        client = Client(running)
        await client.open()
        first = await client.call("Say {{topic}}: {{a}}", [given("topic", "kea"), output("a")])
        second = await client.call("{{a}} then {{b}}", [of("a", first["a"]), output("b")])
        third = await client.call("{{b}} then {{c}}", [of("b", second["b"]), output("c")])
        assert await client.get(third["c"]) == "three"
        assert await client.get(first["a"], "throughput") == "one"
        assert running.engine.record.prompts == ["Say kea: ", "one then ", "two then "]


async def test_a_call_has_several_outputs() -> None:
    async with serving(FakeEngine(scripted("red", "blue", "mix"))) as running:
        client = Client(running)
        await client.open()
        template = "First {{one}}\nSecond {{two}}\nBoth: {{three}} (the end)"
        found = await client.call(template, [output("one"), output("two"), output("three")], remove_pure_fill=True)
        assert [await client.get(found[name]) for name in ("one", "two", "three")] == ["red", "blue", "mix"]
        assert running.engine.record.prompts[-1] == "First red\nSecond blue\nBoth: "


async def test_an_output_may_be_made_before_its_call() -> None:
    async with serving(FakeEngine(scripted("late"))) as running:
        client = Client(running)
        await client.open()
        made = await client.succeed("POST", "/semantic_var", {**client.auth, "var_name": "x"})
        waiting = asyncio.create_task(client.get(made["var_id"]))
        found = await client.call("Write {{x}}", [{**output("x"), "var_id": made["var_id"]}])
        assert found["x"] == made["var_id"]
        assert await waiting == "late"


async def test_a_failed_call_answers_its_readers_with_the_cause() -> None:
    engine = FakeEngine()
    engine.fail_next(EngineFault("the step broke"))
    async with serving(engine) as running:
        client = Client(running)
        await client.open()
        first = await client.call("a {{x}}", [output("x")])
        second = await client.call("{{x}} b {{y}}", [of("x", first["x"]), output("y")])
        status, content = await client.send(
            "GET", f"/semantic_var/{second['y']}", {**client.auth, "criteria": "latency"}
        )
        assert status == 424
        assert "the step broke" in content["error"]["message"]


async def test_lists_models_and_variables() -> None:
    async with serving() as running:
        client = Client(running)
        await client.open()
        made = await client.succeed("POST", "/semantic_var", {**client.auth, "var_name": "x"})
        found = await client.succeed("GET", "/semantic_var", client.auth)
        assert found["vars"] == [{"var_id": made["var_id"], "var_name": "x", "state": "empty"}]
        assert (await client.succeed("GET", "/models", client.auth))["models"] == ["fake"]
        status = await client.succeed("GET", f"/session/{client.session_id}", client.auth)
        assert status["session_id"] == client.session_id


async def test_operators_functions_run() -> None:
    async with serving(functions={"join": lambda x, k: x * k}) as running:
        client = Client(running)
        await client.open()
        parameters = [given("x", "ab"), {"name": "k", "is_output": False, "value": 3}, {"name": "y", "is_output": True}]
        body = {"session_id": client.session_id, "func_name": "join", "parameters": parameters}
        for path in ("/py_native_call", "/submit_py_native_call"):
            found = client.read_call(await client.succeed("POST", path, body), parameters)
            assert await client.get(found["y"]) == "ababab"
        status, content = await client.send("POST", "/py_native_call", {**body, "func_name": "nope"})
        assert (status, content["error"]["code"]) == (404, "not_found")


REFUSED: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/session", {"api_key": 1}, 400),
    ("POST", "/semantic_call", {}, 400),
    ("POST", "/semantic_call", {"session_id": "7", "func_name": "f", "template": "{{x}}", "parameters": []}, 400),
    ("POST", "/semantic_call", {"session_id": 7, "func_name": "f", "template": "{{x}}", "parameters": []}, 404),
    ("POST", "/semantic_var", {"session_id": 7, "session_auth": "x", "var_name": "v"}, 404),
    ("GET", "/semantic_var/v", {"session_id": 7, "session_auth": "x", "criteria": "latency"}, 404),
    ("GET", "/session/7", {"session_auth": "x"}, 404),
    ("DELETE", "/session/x", {"session_auth": "x"}, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
async def test_wrong_requests_are_refused_in_the_clients_form(
    method: str, path: str, body: dict[str, Any], status: int
) -> None:
    async with serving() as running:
        assert (await Client(running).send(method, path, body))[0] == status


CALL_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("template", {"template": "no output"}),
    ("template", {"template": "{{x}} {{unknown}}"}),
    ("n", {"parameters": [output("x", n=2)]}),
    ("length_penalty", {"parameters": [output("x", length_penalty=1.0)]}),
    ("criteria", {"output_criteria": "speed"}),
    ("model", {"models": ["gpt-4"]}),
    ("value", {"parameters": [output("x"), {"name": "k", "is_output": False, "value": 3}]}),
    ("parameters[0].name", {"parameters": [{"name": "1x", "is_output": True}]}),
]


@pytest.mark.parametrize(("param", "change"), CALL_FAULTS)
async def test_wrong_calls_name_what_is_wrong(param: str, change: dict[str, Any]) -> None:
    async with serving() as running:
        client = Client(running)
        await client.open()
        body = {"session_id": client.session_id, "func_name": "f", "template": "a {{x}}", "parameters": [output("x")]}
        status, content = await client.send("POST", "/semantic_call", {**body, **change})
        assert status in (400, 404)
        assert content["error"]["param"].endswith(param)
        assert running.state.service.snapshot().num_pending == 0


async def test_secrets_are_needed_where_the_client_sends_them_and_checked_where_it_may() -> None:
    async with serving() as running:
        client = Client(running)
        await client.open()
        made = await client.succeed("POST", "/semantic_var", {**client.auth, "var_name": "x"})
        path = f"/semantic_var/{made['var_id']}"
        call = {"session_id": client.session_id, "func_name": "f", "template": "a {{x}}", "parameters": [output("x")]}
        for secret in ({}, {"session_auth": "wrong"}):
            bare = {"session_id": client.session_id, **secret}
            assert (await client.send("GET", path, bare))[0] == 403
            assert (await client.send("POST", path, {**bare, "content": "x"}))[0] == 403
            assert (await client.send("POST", "/semantic_var", {**bare, "var_name": "x"}))[0] == 403
            assert (await client.send("DELETE", f"/session/{client.session_id}", secret))[0] == 403
        assert (await client.send("POST", "/semantic_call", {**call, "session_auth": "wrong"}))[0] == 403
        assert (await client.send("POST", "/semantic_call", {**call, "session_auth": client.session_auth}))[0] == 200
        assert (await client.send("POST", "/semantic_call", call))[0] == 200


async def test_a_variable_is_set_once() -> None:
    async with serving() as running:
        client = Client(running)
        await client.open()
        made = await client.succeed("POST", "/semantic_var", {**client.auth, "var_name": "x"})
        path = f"/semantic_var/{made['var_id']}"
        assert await client.succeed("POST", path, {**client.auth, "content": "a"}) == {}
        assert (await client.send("POST", path, {**client.auth, "content": "b"}))[0] == 409
        assert await client.get(made["var_id"]) == "a"


async def test_sessions_of_the_own_routes_are_not_reached_here() -> None:
    async with serving() as running:
        own = (await running.http.post("/v1/sessions", json={})).json()
        client = Client(running, own["session_id"], own["session_secret"])
        body = {"session_id": own["session_id"], "func_name": "f", "template": "a {{x}}", "parameters": [output("x")]}
        assert (await client.send("POST", "/semantic_call", body))[0] == 404


async def test_with_keys_on_the_api_key_is_the_key() -> None:
    config = ServerConfig(port=0, api_keys=(ApiKey("team", "secret-key"),))
    async with serving(config=config) as running:
        client = Client(running)
        assert (await client.send("POST", "/session", {"api_key": "1"}))[0] == 401
        assert (await client.send("POST", "/session", {}))[0] == 401
        await client.open("secret-key")
        found = await client.call("a {{x}}", [output("x")])
        assert await client.get(found["x"]) == "a "
        assert {spec.tenant for spec in running.engine.record.specs} == {"team"}


async def test_the_routes_can_be_switched_off() -> None:
    async with serving(config=ServerConfig(port=0, parrot_routes=False)) as running:
        assert (await running.http.post("/v1/session", json={"api_key": "1"})).status_code == 404
        assert (await running.http.post("/v1/sessions", json={})).status_code == 201
