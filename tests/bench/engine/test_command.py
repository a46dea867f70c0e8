"""`kea bench engine` as a user runs it, on a tiny model: tables, report, refusals and peers that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kea.bench.commands import app
from kea.bench.engine import peers as peers_module
from kea.bench.engine.base import Precision
from kea.bench.engine.shapes import Shape, write_checkpoint
from kea.bench.machine import OtherWork

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225450,879,55
"""
FAKE = Path(__file__).parent / "fake_driver.py"
TINY = Shape("tiny", 2, 64, 64, 4, 2, 400, head_dim=16, max_len=512)
SMALL = (
    *("--prompt-lens", "16", "--batches", "1,2", "--contexts", "16", "--steps", "3", "--rounds", "2"),
    *("--num-requests", "3", "--rate", "50", "--threads", "1"),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TINY, "bfloat16", folder)
    return folder


def invoke(tmp_path: Path, *arguments: str) -> Result:
    env = {"COLUMNS": "300", "KEA_BENCH_CACHE": str(tmp_path / "cache"), "KEA_PEERS_DIR": str(tmp_path / "peers")}
    return CliRunner().invoke(app, ["engine", *arguments], env=env)


def test_a_run_measures_kea_a_peer_and_the_machine(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = peers_module.PeerKind(str(FAKE), (Precision.F32,), peers_module.as_is)
    monkeypatch.setitem(peers_module.PEERS, "fake", fake)
    environment = tmp_path / "peers" / "fake"
    (environment / "bin").mkdir(parents=True)
    (environment / "made").touch()
    (environment / "bin" / "python").symlink_to(sys.executable)
    report, trace = tmp_path / "report.json", tmp_path / "trace.csv"
    trace.write_text(TRACE)
    scenarios = ("--scenarios", "prefill,decode,arrivals,cache,overhead,latency,lookup", "--kv-cache-dtype", "int8")
    result = invoke(
        tmp_path,
        *("--model", str(tiny), "--peers", "fake,vllm", *scenarios, *SMALL),
        *("--trace", str(trace), "--trace-length-scale", "0.1", "--json", str(report)),
    )
    assert result.exit_code == 0, result.output
    data = json.loads(report.read_text())
    assert [(peer["name"], peer["status"]) for peer in data["peers"]] == [
        ("kea bf16", "measured"),
        ("fake f32", "measured"),
        ("vllm f32", "absent"),
    ]
    assert "KV in int8" in data["peers"][0]["note"]
    steps = [
        one for one in data["samples"] if one["name"] == "step_time" and one["scenario"].startswith("decode batch 2")
    ]
    assert {(one["peer"], one["count"]) for one in steps} == {("kea bf16", 6), ("fake f32", 6)}
    assert {bound["unit"] for bound in data["bounds"]} == {"GB/s", "GFLOP/s"}
    assert any("make peers ARGS=vllm" in lost["message"] for lost in data["failures"])
    assert any("prefix cache" in lost["message"] and lost["peer"] == "fake f32" for lost in data["failures"])
    for name in ("ttft", "tpot", "e2e", "cold_time", "warm_time", "median_error_ratio", "time_with_guesses"):
        assert any(one["name"] == name and one["peer"] == "kea bf16" for one in data["samples"]), name
    assert "decode batch 2, context 16: kea bf16 against fake f32" in result.output
    # What is absent is told before the run and behind it; goals that it leaves open are counted there, listed in JSON.
    assert result.output.count("vllm f32: absent, ") == 2
    missing = [show for show in data["shows"] if show["value"] is None]
    assert all(show["note"] == "not measured" for show in missing)
    assert ("not measured in this run" in result.output) is bool(missing)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "llamacp"), "allowed: llamacpp"),
        (("--peers", "none,llamacpp"), "or all or none alone"),
        (("--precisions", "f31"), "allowed: bf16, f16, f32, int8"),
        (("--scenarios", "nothing"), "allowed: prefill"),
        (("--batches", "1,x"), "batches is 'x'"),
        (("--kv-cache-dtype", "fp8"), "kv-cache-dtype is 'fp8'; allowed: auto"),
        (("--kv-cache-dtype", "bfloat16"), "allowed: auto, float32, float16, int8"),
        (("--kv-tokens", "0"), "kv-tokens is 0; it must be at least 1"),
        (("--threads", "0"), "threads is 0; it must be at least 1"),
        (("--threads", "100000"), "threads is 100000; it must be at least 1 and at most"),
        (("--time-limit-s", "0"), "time-limit-s is 0.0; it must be above 0 seconds"),
        (("--timeout-s", "-1"), "timeout-s is -1.0; it must be above 0 seconds"),
        (("--cache-dir", "/dev/null/weights"), "cache-dir is '/dev/null/weights', which cannot be written: Not a dir"),
        (("--batches", "0"), "batches"),
        (("--rounds", "0"), "rounds"),
        (("--model", "/nowhere"), "of a Llama: its config.json cannot be read (No such file or directory)."),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    result = invoke(tmp_path, *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_where_nothing_fits_no_system_is_loaded(tiny: Path, tmp_path: Path) -> None:
    sizes = ("--scenarios", "decode", *SMALL, "--contexts", "16K")
    result = invoke(tmp_path, "--model", str(tiny), "--peers", "none", *sizes)
    assert result.exit_code == 2
    assert "Nothing can be measured: decode batch 1, context 16384 needs 16,5" in result.output
    assert "The other 1 are left out, too." in result.output
    assert "loading" not in result.output


def test_the_bounds_of_other_families_are_not_guessed(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
    result = invoke(tmp_path, "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "its model_type is mixtral; allowed: llama, mistral, qwen2, qwen3" in result.output


def test_a_given_checkpoint_is_measured_at_its_own_precision(tiny: Path, tmp_path: Path) -> None:
    result = invoke(tmp_path, "--model", str(tiny), "--precisions", "f32")
    assert result.exit_code == 2
    assert "the checkpoint is bf16" in result.output


def test_cells_that_do_not_fit_and_others_work_are_reported(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherWork, "share", lambda _: 0.31)
    report = tmp_path / "report.json"
    result = invoke(
        tmp_path,
        *("--model", str(tiny), "--peers", "none", "--scenarios", "prefill,decode", *SMALL, "--rounds", "1"),
        *("--prompt-lens", "16,4096", "--batches", "1,200", "--kv-tokens", "2000", "--json", str(report)),
    )
    assert result.exit_code == 0, result.output
    left_out = [one["message"] for one in json.loads(report.read_text())["failures"] if one["kind"] == "left out"]
    assert len(left_out) == 2
    assert "the model has 512" in left_out[0]
    assert "kv-tokens is 2,000" in left_out[1]
    assert json.loads(report.read_text())["machine"]["other_share"] == 0.31
    assert "Other processes took 31% of the cores' time" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_and_reports_what_was_measured(tiny: Path, tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "kea.bench", "engine", "--model", str(tiny), "--peers", "none", *SMALL]
    command += ["--scenarios", "decode", "--rounds", "10000", "--cache-dir", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round") or time.monotonic() > deadline:
                break
        time.sleep(1.0)
        os.kill(process.pid, number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "The run was interrupted" in output
    # In a pipe nothing is cut or wrapped.
    assert "│ decode batch 2, context 16 (tokens/s)" in output
    assert "decode batch 2, context 16: kea bf16, share of the bound of reading and arithmetic" in output
