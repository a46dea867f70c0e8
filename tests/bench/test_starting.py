"""Servers that `kea bench serve` starts itself: they come up, are measured, and end; faults are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from kea.bench.commands import app
from kea.bench.engine.shapes import Shape, write_checkpoint
from kea.bench.starting import Places, read_starts, serving, targets_of
from kea.errors import InvalidRequest, Unreachable

TINY = Shape("tiny", 2, 64, 64, 4, 2, 400, head_dim=16, max_len=256)
LISTENS = """#!/usr/bin/env bash
shift
exec {python} -m http.server --bind 127.0.0.1 "$4"
"""
OUR_SERVER = """#!/usr/bin/env bash
exec {python} -c 'from kea.cli import main; main()' serve "$@"
"""


class Unseen:
    def phase(self, text: str) -> None:
        """Ignore it."""


def write_peer(folder: Path, text: str, name: str = "vllm") -> None:
    script = folder / name / "serve"
    script.parent.mkdir(parents=True)
    script.write_text(text.format(python=sys.executable))
    script.chmod(0o755)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments], env={"COLUMNS": "200"})


def test_two_servers_are_started_measured_and_ended(tmp_path: Path) -> None:
    model, report = tmp_path / "model", tmp_path / "report.json"
    model.mkdir()
    write_checkpoint(TINY, "bfloat16", model)
    write_peer(tmp_path, OUR_SERVER)
    result = invoke(
        *("--start", f"kea={model}", "--start", f"vllm={model}", "--start-flags", "vllm=--max-num-seqs 4"),
        *("--peers-dir", str(tmp_path), "--slo-of", "vllm", "--num-requests", "4", "--rounds", "2"),
        *("--input-len", "12", "--output-len", "4", "--json", str(report)),
    )
    assert result.exit_code == 0, result.output
    data = json.loads(report.read_text())
    assert [(peer["name"], peer["status"]) for peer in data["peers"]] == [("kea", "measured"), ("vllm", "measured")]
    (goal,) = [show for show in data["shows"] if show["name"] == "kea against vllm: goodput"]
    assert goal["goal"] == ">= 2"
    urls = [peer["note"].split(" at ")[1] for peer in data["peers"]]
    for url in urls:
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url, trust_env=False)


def test_a_server_is_ready_once_it_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    write_peer(tmp_path, LISTENS)
    starts = read_starts(["vllm=model"], [])
    with serving(starts, Places(tmp_path, None), Unseen()):
        assert httpx2.get(starts[0].url, trust_env=False).status_code == 200
    with pytest.raises(httpx2.TransportError):
        httpx2.get(starts[0].url, trust_env=False)


def test_a_peer_that_does_not_come_up_is_reported_and_the_others_are_measured(tmp_path: Path) -> None:
    model, report = tmp_path / "model", tmp_path / "report.json"
    model.mkdir()
    write_checkpoint(TINY, "bfloat16", model)
    write_peer(tmp_path, "#!/usr/bin/env bash\necho no room >&2\nexit 7\n", "vllm")
    load = ("--num-requests", "2", "--input-len", "12", "--output-len", "4", "--peers-dir", str(tmp_path))
    starts = ("--start", f"kea={model}", "--start", "vllm=m", "--start", "llamacpp=m")
    result = invoke(*starts, *load, "--json", str(report))
    assert result.exit_code == 0, result.output
    data = json.loads(report.read_text())
    assert [(peer["name"], peer["status"]) for peer in data["peers"]] == [
        ("kea", "measured"),
        ("vllm", "failed"),
        ("llamacpp", "absent"),
    ]
    assert "ended with 7: no room" in result.output
    assert "make peers ARGS=llamacpp" in result.output
    result = invoke(*starts, *load, "--slo-of", "vllm")
    assert result.exit_code == 1
    assert "slo-of names vllm, which is failed" in result.output


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    write_peer(tmp_path, "#!/usr/bin/env bash\necho no such model: $1 >&2\nexit 7\n")
    starts = read_starts(["vllm=nowhere"], [])
    with (
        pytest.raises(Unreachable, match="ended with 7: no such model: nowhere"),
        serving(starts, Places(tmp_path, None), Unseen()),
    ):
        pytest.fail("it never came up")


def test_a_peer_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    result = invoke("--start", "vllm=model", "--peers-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "make peers ARGS=vllm" in result.output


@pytest.mark.parametrize(
    ("starts", "flags"),
    [(["sglang=model"], []), (["kea"], []), (["kea=a", "kea=b"], []), (["kea=a"], ["vllm=--x"])],
)
def test_wrong_starts_are_refused(starts: list[str], flags: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        read_starts(starts, flags)


def test_flags_are_split_as_a_shell_does_and_peers_compute_in_fp32_by_default() -> None:
    kea, vllm = read_starts(["kea=m", "vllm=m"], ["kea=--max-model-len 2k --api-key 'a b'"])
    assert kea.flags == ("--max-model-len", "2k", "--api-key", "a b")
    assert vllm.flags == ("--dtype", "float32")
    assert [target.knows_ignore_eos for target in targets_of(read_starts(["vllm=m", "transformers=m"], []))] == [
        True,
        False,
    ]
    assert kea.port != vllm.port
