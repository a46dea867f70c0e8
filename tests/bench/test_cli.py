"""`python -m kea.bench serve` as a user runs it: the table, the files, the exit status, the refusals and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from kea.bench import serve_options
from kea.bench.commands import app
from kea.bench.load.client import RequestShape, Target
from kea.bench.load.lengths import Fixed
from kea.bench.load.plan import Arrivals, Workload
from kea.bench.serving import ServeSettings
from kea.errors import InvalidRequest
from tests.bench.fake_openai import Act, FakeOpenAI, serving

SMALL = ("--num-requests", "5", "--input-len", "12", "--output-len", "4", "--warmups", "0")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments], env={"COLUMNS": "200"})


def test_a_run_prints_its_table_and_writes_its_files(tmp_path: Path) -> None:
    report, requests = tmp_path / "report.json", tmp_path / "requests.jsonl"
    with serving(FakeOpenAI()) as ours, serving(FakeOpenAI()) as theirs:
        result = invoke(
            *("--base-url", ours.url, "--name", "kea", "--peer", f"other={theirs.url}", "--rounds", "2"),
            *SMALL,
            *("--rate", "200", "--slo-ttft-ms", "5000", "--json", str(report), "--requests", str(requests)),
        )
    assert result.exit_code == 0, result.output
    assert re.search(r"requests answered\s+│\s+10 │\s+10 │", result.output)
    for words in ("kea against other", "goodput (requests/s)", "TTFT", "p99 (ms)", "Goodput counts requests with TTFT"):
        assert words in result.output
    data = json.loads(report.read_text())
    assert [peer["name"] for peer in data["peers"]] == ["kea", "other"]
    assert data["load"]["rate_per_s"] == 200
    assert len(requests.read_text().splitlines()) == 20


def test_keys_reach_their_servers_and_no_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with serving(FakeOpenAI(api_key="sesame")) as ours, serving(FakeOpenAI(api_key="thyme")) as theirs:
        peer = ("--peer", f"other={theirs.url}", "--peer-key", "other=thyme")
        result = invoke(
            "--base-url", ours.url, "--api-key", "sesame", *peer, *SMALL, "--rounds", "1", "--json", str(report)
        )
    assert result.exit_code == 0, result.output
    for secret in ("sesame", "thyme"):
        assert secret not in report.read_text() + result.output


def test_a_chat_run_with_constant_concurrency() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(first_s=0.02))) as fake:
        result = invoke("--base-url", fake.url, "--api", "chat", "--concurrency", "2", *SMALL)
    assert result.exit_code == 0, result.output
    assert all("messages" in body for body in fake.bodies)
    assert fake.most_under_way <= 2


def test_failures_are_printed_and_a_server_without_answers_is_an_error() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(status=429))) as fake:
        result = invoke("--base-url", fake.url, *SMALL)
    assert result.exit_code == 1
    assert "5 http: 429: scripted" in result.output


def test_short_answers_are_told() -> None:
    with serving(FakeOpenAI(script=lambda _: Act(tokens=2, has_usage=False))) as fake:
        result = invoke("--base-url", fake.url, *SMALL)
    assert "5 answers were shorter than asked" in result.output
    assert "5 answers came without usage" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "4", "--concurrency", "2"), "rate and concurrency are both given"),
        (("--start", "kea=25m", "--base-url", "http://127.0.0.1:9"), "another one is --peer NAME=URL"),
        (("--rate", "fast"), "rate is 'fast'"),
        (("--rate", "-1"), "rate is '-1'"),
        (("--input-len", "many"), "input-len is 'many'"),
        (("--num-requests", "0"), "num-requests is 0"),
        (("--base-url", "host:1"), "base-url is 'host:1'"),
        (("--peer", "name"), "each is NAME=URL"),
        (("--peer", "server=http://h"), "every server needs a name of its own"),
        (("--peer-key", "x=secret"), "peer-key names 'x'"),
        (("--peer-model", "x=m"), "peer-model names 'x'"),
        (("--extra-body", "{"), "extra-body is no JSON"),
        (("--extra-body", "[]"), "must be a JSON object"),
        (("--trace", "absent.csv"), "no such file"),
        (("--slo-ttft-ms", "-5"), "slo-ttft-ms is -5"),
        (("--slo-of", "nobody"), "slo-of is 'nobody'"),
        (("--rounds", "0"), "rounds is 0"),
        (("--json", "/"), "json is '/', which cannot be written"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments: tuple[str, ...], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "secret" not in result.output


def test_a_server_that_is_not_there_is_a_plain_error() -> None:
    result = invoke("--base-url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "error: The server at http://127.0.0.1:9 does not answer" in result.output
    assert "Traceback" not in result.output


def test_an_infinite_rate_is_no_rate() -> None:
    assert serve_options.read_arrivals("inf", None) == Arrivals()
    with pytest.raises(InvalidRequest):
        serve_options.read_arrivals("nan", None)


def test_quick_bounds_everything() -> None:
    workload = Workload(5000, 0, Arrivals(1.0), Fixed(4000), Fixed(900), max_output_len=16)
    asked = ServeSettings((Target("a", "http://h"), Target("b", "http://h")), workload, num_rounds=3)
    quick = serve_options.make_quick(asked)
    assert quick.workload.num_requests <= 32
    assert quick.workload.max_input_len == 256
    assert quick.workload.max_output_len == 16
    assert quick.limit_s is not None
    assert quick.prepare_limit_s is not None
    assert quick.round_limit_s == pytest.approx(quick.limit_s / 6)
    assert quick.limit_s + quick.prepare_limit_s < 300
    started = serve_options.make_quick(asked, starts_servers=True)
    assert started.limit_s is not None
    assert serve_options.QUICK_READY_S + started.limit_s + quick.prepare_limit_s < 300
    assert quick.shape == RequestShape()


FLAGS = {
    "--api", "--api-key", "--base-url", "--concurrency", "--extra-body", "--ignore-eos", "--input-len", "--json",
    "--max-input-len", "--max-output-len", "--model", "--name", "--num-requests", "--output-len", "--peer",
    "--peer-key", "--peer-model", "--prefix-len", "--prompts", "--quick", "--rate", "--requests", "--rounds",
    "--seed", "--slo-e2e-ms", "--slo-of", "--slo-tpot-factor", "--slo-tpot-ms", "--slo-ttft-factor",
    "--slo-ttft-ms", "--temperature", "--time-limit-s", "--timeout-s", "--trace", "--trace-length-scale",
    "--trace-time-scale", "--warmups", "--cache-dir", "--peers-dir", "--start", "--start-flags",
}  # fmt: skip
ENGINE_FLAGS = {
    "--batches", "--cache-dir", "--contexts", "--device", "--json", "--kv-cache-dtype", "--kv-tokens", "--model",
    "--num-requests", "--peers", "--peers-dir", "--precisions", "--prompt-lens", "--quick", "--rate", "--rounds",
    "--scenarios", "--seed", "--sequences", "--steps", "--threads", "--time-limit-s", "--timeout-s", "--trace",
    "--trace-length-scale",
}  # fmt: skip


def test_the_flags_are_permanent() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for command, known in (("serve", FLAGS), ("engine", ENGINE_FLAGS)):
        flags = {parameter.opts[0] for parameter in group.commands[command].params}
        assert flags - {"--help"} == known


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reports_what_finished(tmp_path: Path, number: int) -> None:
    report = tmp_path / "report.json"
    with serving(FakeOpenAI(script=lambda number: Act(first_s=60 if number >= 3 else 0))) as fake:
        command = [sys.executable, "-m", "kea.bench", "serve", "--base-url", fake.url, *SMALL, "--json", str(report)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while len(fake.bodies) < 5 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(number)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "The run was interrupted" in output
    data = json.loads(report.read_text())
    assert data["interrupted"] is True
    assert [(failure["kind"], failure["count"]) for failure in data["failures"]] == [("interrupted", 2)]
