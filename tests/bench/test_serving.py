"""Whole runs against real servers on loopback: what is sent, to whom, in which order, and what is reported."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kea.bench.base import Report
from kea.bench.load.client import RequestResult, RequestShape, Target
from kea.bench.load.figures import count
from kea.bench.load.lengths import Fixed, Uniform
from kea.bench.load.plan import Arrivals, Planned, Workload
from kea.bench.load.prompts import FilePrompt
from kea.bench.machine import read_machine
from kea.bench.serve_report import build_report, write_requests
from kea.bench.serving import Measurement, RelativeSlo, ServeSettings, measure
from kea.bench.statistics import Slo
from kea.errors import InvalidRequest, Unreachable
from tests.bench.fake_openai import Act, FakeOpenAI, serving

WORKLOAD = Workload(6, 1, Arrivals(rate_per_s=100.0), Uniform(10, 20), Fixed(4))


class Heard:
    """Keeps what the run says of itself."""

    def __init__(self) -> None:
        self.rounds: list[tuple[str, int]] = []
        self.num_ended = 0

    def phase(self, text: str) -> None:
        """Not of interest."""

    def round_began(self, server: str, round_idx: int, num_requests: int) -> None:
        self.rounds.append((server, round_idx))

    def sent(self, planned: Planned) -> None:
        """Not of interest."""

    def ended(self, result: RequestResult) -> None:
        self.num_ended += 1


def settings(*fakes: FakeOpenAI, **changes: Any) -> ServeSettings:
    targets = tuple(Target(f"s{number}", fake.url, fake.api_key) for number, fake in enumerate(fakes))
    return ServeSettings(targets, changes.pop("workload", WORKLOAD), num_warmups=0, **changes)


async def run(chosen: ServeSettings, heard: Heard | None = None) -> Measurement:
    measured = await measure(chosen, heard or Heard(), asyncio.Event())
    assert measured is not None
    return measured


def report_of(chosen: ServeSettings, measured: Measurement) -> Report:
    return build_report(chosen, measured, read_machine(), datetime(2026, 1, 2, tzinfo=UTC), 1.5)


async def test_every_request_is_sent_once_with_its_length() -> None:
    with serving(FakeOpenAI()) as fake:
        measured = await run(settings(fake))
    assert len(fake.bodies) == 6
    wanted = sorted(planned.input_len or 0 for planned in measured.plans[0])
    assert sorted(1 + len(body["prompt"].split()) for body in fake.bodies) == wanted
    assert [result.prompt_tokens for result in measured.served[0].rounds[0].results] == [
        planned.input_len for planned in measured.plans[0]
    ]
    assert measured.served[0].version == "1.2.3"


async def test_peers_get_the_same_load_in_alternating_order() -> None:
    with serving(FakeOpenAI()) as ours, serving(FakeOpenAI(models=("its-own-name",))) as theirs:
        heard = Heard()
        measured = await run(settings(ours, theirs, num_rounds=3), heard)
    assert heard.rounds == [("s0", 0), ("s1", 0), ("s1", 1), ("s0", 1), ("s0", 2), ("s1", 2)]
    assert heard.num_ended == 36
    assert sorted(body["prompt"] for body in ours.bodies) == sorted(body["prompt"] for body in theirs.bodies)
    assert len({body["prompt"] for body in ours.bodies}) == 18
    assert {body["model"] for body in theirs.bodies} == {"its-own-name"}
    assert [served.model for served in measured.served] == ["fake", "its-own-name"]


async def test_a_key_goes_to_its_own_server_only() -> None:
    with serving(FakeOpenAI(api_key="one")) as ours, serving(FakeOpenAI(api_key="two")) as theirs:
        measured = await run(settings(ours, theirs))
    assert [count(served.rounds).failed for served in measured.served] == [0, 0]


async def test_failures_are_counted_and_reported() -> None:
    def script(number: int) -> Act:
        return {1: Act(status=429), 3: Act(status=429), 4: Act(ending="cut")}.get(number, Act())

    with serving(FakeOpenAI(script=script)) as fake:
        chosen = settings(fake)
        measured = await run(chosen)
    report = report_of(chosen, measured)
    assert {(failure.kind, failure.count) for failure in report.failures} == {("http", 2), ("disconnect", 1)}
    answered = next(show for show in report.shows if show.name == "s0: requests answered")
    assert (answered.value, answered.holds) == (50.0, False)
    assert [sample.summary().count for sample in report.samples if sample.name == "ttft"] == [3]


async def test_an_objective_relative_to_an_unloaded_server() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(first_s=0.05, gap_s=0.02))) as fake:
        relative = RelativeSlo("s0", ttft_factor=4.0, tpot_factor=10.0, num_requests=3)
        measured = await run(settings(fake, relative_slo=relative))
    assert len(fake.bodies) == 9  # three of them unloaded
    assert measured.slo.ttft_s is not None
    assert measured.slo.tpot_s is not None
    assert measured.slo.ttft_s >= 0.2
    assert measured.slo.tpot_s >= 0.2


async def test_warm_ups_are_sent_and_not_reported() -> None:
    with serving(FakeOpenAI()) as fake:
        measured = await run(replace(settings(fake), num_warmups=2))
    assert len(fake.bodies) == 8
    assert count(measured.served[0].rounds).asked == 6
    prompts = [body["prompt"] for body in fake.bodies]
    assert not set(prompts[:2]) & set(prompts[2:])


async def test_a_limit_ends_a_run_and_every_server_gets_its_share() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(first_s=30))) as ours, serving(FakeOpenAI()) as theirs:
        measured = await asyncio.wait_for(run(settings(ours, theirs, limit_s=6.0)), 30)
    stuck, fine = (count(served.rounds) for served in measured.served)
    assert (stuck.answered, stuck.interrupted) == (0, 6)
    assert fine.answered == 6
    assert not measured.was_interrupted


async def test_stopping_before_the_load_measures_nothing() -> None:
    stop = asyncio.Event()
    stop.set()
    with serving(FakeOpenAI()) as fake:
        assert await measure(settings(fake), Heard(), stop) is None
    assert not fake.bodies


async def test_stopping_in_the_load_reports_what_finished() -> None:
    stop = asyncio.Event()

    class Impatient(Heard):
        def ended(self, result: RequestResult) -> None:
            super().ended(result)
            stop.set()

    with serving(FakeOpenAI(script=lambda number: Act(first_s=30 if number else 0))) as fake:
        chosen = settings(fake, num_rounds=5)
        measured = await asyncio.wait_for(measure(chosen, Impatient(), stop), 20)
    assert measured is not None
    assert measured.was_interrupted
    counts = count(measured.served[0].rounds)
    assert counts.answered == 1
    assert counts.asked == 6
    assert report_of(chosen, measured).interrupted


async def test_slow_preparation_is_bounded() -> None:
    workload = replace(WORKLOAD, prompts=(FilePrompt("two words"),))
    with serving(FakeOpenAI(script=lambda _: Act(first_s=30))) as fake:
        chosen = replace(settings(fake, workload=workload), num_warmups=1, prepare_limit_s=1.0)
        with pytest.raises(Unreachable, match="not ready"):
            await run(chosen)


@pytest.mark.parametrize(
    ("served", "wanted", "chosen"),
    [
        (("only",), None, "only"),
        (("a", "b"), "b", "b"),
        (None, "unlisted", "unlisted"),
        ((), "unlisted", "unlisted"),
        ((), None, None),
        (("a", "b"), None, None),
        (("only",), "other", None),
        (None, None, None),
    ],
)
async def test_the_model_is_the_asked_or_the_only_one(
    served: tuple[str, ...] | None, wanted: str | None, chosen: str | None
) -> None:
    with serving(FakeOpenAI(models=served)) as fake:
        target = Target("s0", fake.url, None, wanted)
        asked = ServeSettings((target,), WORKLOAD, num_warmups=0)
        if chosen is not None:
            assert (await run(asked)).served[0].model == chosen
            return
        with pytest.raises(InvalidRequest, match=f"The server at {fake.url}") as caught:
            await run(asked)
        assert caught.value.param == "model"


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(Unreachable, match="The server at http://127"):
        await run(settings(FakeOpenAI(url="http://127.0.0.1:9")))


def test_impossible_runs_are_refused() -> None:
    one, two = Target("a", "http://h"), Target("b", "http://h")
    for targets in ((), (one, one)):
        with pytest.raises(InvalidRequest, match="name"):
            ServeSettings(targets, WORKLOAD)
    with pytest.raises(InvalidRequest, match="slo-of is 'c'; it must be one of a, b"):
        ServeSettings((one, two), WORKLOAD, relative_slo=RelativeSlo("c", 2, 2))
    shapes = ({"shape": RequestShape(timeout_s=0)}, {"shape": RequestShape(temperature=-1)})
    for change in ({"num_rounds": 0}, {"num_warmups": -1}, {"limit_s": 0.0}, *shapes):
        with pytest.raises(InvalidRequest):
            ServeSettings((one,), WORKLOAD, **change)


REPORT_KEYS = [
    "schema_version", "command", "created_at", "duration_s", "interrupted", "machine", "versions", "model", "load",
    "peers", "bounds", "samples", "failures", "shows",
]  # fmt: skip
ENTRY_KEYS = {
    "machine": ["cpu", "num_cores", "memory_bytes", "os", "load_average", "other_share"],
    "versions": ["kea", "python", "httpx2"],
    "model": ["name", "num_parameters", "dtype"],
    "load": [
        "api", "arrivals", "rate_per_s", "concurrency", "num_requests", "num_rounds", "num_warmups", "seed",
        "input_lengths", "output_lengths", "prefix_len", "mean_input_len", "mean_output_len", "num_cut",
        "trace_time_scale", "trace_length_scale", "prompt_lengths_are_exact", "ignore_eos", "temperature",
        "slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "slo_of", "limit_s",
    ],
    "peers": ["name", "status", "version", "note"],
    "bounds": ["name", "value", "unit", "note"],
    "samples": ["name", "peer", "scenario", "unit", "count", "mean", "median", "p99", "values"],
    "failures": ["peer", "kind", "message", "count"],
    "shows": ["name", "value", "unit", "goal", "holds", "note"],
}  # fmt: skip
SAMPLE_NAMES = [
    "request_throughput", "output_throughput", "total_throughput", "goodput", "ttft", "tpot", "itl", "e2e",
    "client_lag", "prompt_tokens", "cached_tokens", "output_tokens",
]  # fmt: skip


async def test_the_schema_of_the_report_is_permanent(tmp_path: Path) -> None:
    failing = FakeOpenAI(script=lambda number: Act(status=500 if number == 2 else 200))
    with serving(failing) as ours, serving(FakeOpenAI()) as theirs:
        chosen = settings(ours, theirs, slo=Slo(ttft_s=1.0))
        measured = await run(chosen)
    path = tmp_path / "new" / "report.json"
    report_of(chosen, measured).write(path)
    data = json.loads(path.read_text())
    assert list(data) == REPORT_KEYS
    for name, keys in ENTRY_KEYS.items():
        assert list(data[name] if isinstance(data[name], dict) else data[name][0]) == keys
    assert [sample["name"] for sample in data["samples"] if sample["peer"] == "s0"] == SAMPLE_NAMES
    assert {show["name"] for show in data["shows"]} >= {"s0 against s1: goodput", "client lag", "s1: goodput"}
    assert data["schema_version"] == 1
    assert data["created_at"] == "2026-01-02T00:00:00+00:00"


REQUEST_KEYS = [
    "peer", "round", "index", "scheduled_s", "sent_s", "wanted_output_tokens", "prompt_tokens", "cached_tokens",
    "output_tokens", "is_usage_reported", "ttft_s", "itl_s", "e2e_s", "failure",
]  # fmt: skip


async def test_every_request_is_written(tmp_path: Path) -> None:
    with serving(FakeOpenAI(script=lambda number: Act(status=500 if number == 2 else 200))) as fake:
        measured = await run(settings(fake, num_rounds=2))
    write_requests(measured, tmp_path / "requests.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [(row["round"], row["index"]) for row in rows] == [(r, i) for r in (0, 1) for i in range(6)]
    assert all(list(row) == REQUEST_KEYS for row in rows)
    assert [row["failure"] for row in rows if row["failure"]] == [{"kind": "http", "message": "500: scripted"}]


async def test_the_offered_rate_bounds_the_throughput() -> None:
    with serving(FakeOpenAI()) as fake:
        chosen = settings(fake)
        report = report_of(chosen, await run(chosen))
    (bound,) = report.bounds
    (sample,) = (sample for sample in report.samples if sample.name == "request_throughput")
    assert 0 < sample.values[0] <= bound.value
