"""Metrics: what was sent is what is counted, under vLLM's names with our prefix."""

from __future__ import annotations

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kea.errors import EngineDied
from kea.server.metrics import Metrics
from kea.types import FinishReason, Usage
from tests.fakes.engine import FakeEngine, scripted
from tests.server.support import Serving, serving

NAMES = {
    "kea:num_requests_running",
    "kea:num_requests_waiting",
    "kea:kv_cache_usage_perc",
    "kea:prefix_cache_queries",
    "kea:prefix_cache_hits",
    "kea:prompt_tokens",
    "kea:generation_tokens",
    "kea:request_success",
    "kea:num_preemptions",
    "kea:time_to_first_token_seconds",
    "kea:inter_token_latency_seconds",
    "kea:e2e_request_latency_seconds",
    "kea:request_queue_time_seconds",
    "kea:spec_decode_num_draft_tokens",
    "kea:spec_decode_num_accepted_tokens",
}


async def samples(running: Serving) -> dict[str, float]:
    response = await running.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "fake"
            rest = "".join(f"/{value}" for key, value in sample.labels.items() if key not in ("model_name", "le"))
            if not sample.name.endswith(("_bucket", "_created")):
                found[sample.name + rest] = sample.value
    return found


async def test_all_names_are_there() -> None:
    async with serving() as running:
        text = (await running.http.get("/metrics")).text
        assert {family.name for family in text_string_to_metric_families(text)} >= NAMES


async def test_counts_are_those_of_the_requests() -> None:
    async with serving(FakeEngine(scripted("12345678"), chunk_tokens=2)) as running:
        await running.openai.completions.create(model="fake", prompt="x")
        await running.openai.completions.create(model="fake", prompt="x", n=2, max_tokens=4)
        stream = await running.openai.completions.create(model="fake", prompt="x", stream=True)
        assert len([piece async for piece in stream]) > 1
        session = (await running.http.post("/v1/sessions", json={})).json()
        assert session["session_id"]
        found = await samples(running)
        assert found["kea:request_success_total/stop"] == 2
        assert found["kea:request_success_total/length"] == 2
        assert found["kea:prompt_tokens_total"] == 4 * 2
        assert found["kea:generation_tokens_total"] == 8 + 4 + 4 + 8
        assert found["kea:time_to_first_token_seconds_count/request"] == 4
        assert found["kea:e2e_request_latency_seconds_count/request"] == 4
        assert found["kea:inter_token_latency_seconds_count/request"] == 24 - 4
        assert found["kea:num_requests_running"] == 0
        assert found["kea:num_sessions"] == 1
        assert found["kea:program_calls_total/done"] == 0


async def test_programs_are_counted_too() -> None:
    call = {
        "id": "c",
        "template": "ab{{out}}cd{{more}}",
        "parameters": [{"name": name, "output": {"variable": name, "max_tokens": 4}} for name in ("out", "more")],
    }
    async with serving(FakeEngine(scripted("1234"))) as running:
        session = (await running.http.post("/v1/sessions", json={})).json()
        path, headers = f"/v1/sessions/{session['session_id']}", {"x-kea-session-secret": session["session_secret"]}
        assert (await running.http.post(f"{path}/calls", json={"calls": [call]}, headers=headers)).status_code == 202
        assert (await running.http.get(f"{path}/variables/more", headers=headers)).json()["value"] == "1234"
        (row,) = (await running.http.get(path, headers=headers)).json()["calls"]
        found = await samples(running)
    assert found["kea:program_calls_total/done"] == 1
    assert found["kea:program_generation_tokens_total"] == row["output_tokens"] == 8
    assert found["kea:program_prompt_tokens_total"] == row["prompt_tokens"] > 0
    assert found["kea:time_to_first_token_seconds_count/program"] == 2
    assert found["kea:inter_token_latency_seconds_count/program"] == 8 - 2
    assert found["kea:e2e_request_latency_seconds_count/program"] == 2
    assert found["kea:request_queue_time_seconds_count/program"] == 2
    assert found["kea:e2e_request_latency_seconds_count/request"] == 0


async def test_a_request_that_runs_again_is_no_failure() -> None:
    async with serving(FakeEngine(scripted("1234"))) as running:
        running.engine.fail_next(EngineDied("gone"))
        await running.openai.completions.create(model="fake", prompt="x")
        assert "kea:request_failure_total/engine_died" not in await samples(running)
        for _ in range(2):
            running.engine.fail_next(EngineDied("gone"))
        with pytest.raises(openai.InternalServerError):
            await running.openai.completions.create(model="fake", prompt="x")
        assert (await samples(running))["kea:request_failure_total/engine_died"] == 1


def test_times_are_those_that_were_seen() -> None:
    metrics = Metrics("m")
    metrics.saw_first_token(0.5)
    metrics.saw_next_tokens(0.2, 4)
    metrics.saw_end(FinishReason.STOP, Usage(3, 1, 5, 0.25, 0.125, 0.5), 2.0)
    text = metrics.expose(None).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples if sample.labels.get("source") == "request"}
    assert values["kea:time_to_first_token_seconds_sum"] == 0.5
    assert values["kea:inter_token_latency_seconds_sum"] == pytest.approx(0.2)
    assert values["kea:inter_token_latency_seconds_count"] == 4
    assert values["kea:request_queue_time_seconds_sum"] == 0.25
    assert values["kea:request_prefill_time_seconds_sum"] == 0.125
    assert values["kea:request_decode_time_seconds_sum"] == 0.5
