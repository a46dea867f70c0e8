"""`kea models` and `kea doctor`: what they tell of models and of the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kea.cli.app import app
from kea.cli.console import out
from kea.cli.models import _count, _size


def kea(*arguments: str) -> Result:
    """Run a command in this process, which has the libraries loaded."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def write_config(folder: Path, **config: object) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_models_are_described_and_refused_by_name(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 400)  # room for any path
    bloom = write_config(tmp_path / "alibi", model_type="bloom", n_layer=2, n_head=4, hidden_size=32, vocab_size=99)
    result = kea("models", str(stories260k), bloom, str(tmp_path))
    assert result.exit_code == 1
    line = next(line.split() for line in result.stdout.splitlines() if line.startswith(str(stories260k)))
    assert line[1:] == ["llama", "260", "k", "1016", "KiB", "512", "1.25", "KiB", "yes"]
    assert f"{bloom}: Models of type bloom cannot be served: it adds ALiBi biases" in result.stderr
    assert f"{tmp_path}: The directory {tmp_path} has no config.json." in result.stderr


def test_a_model_whose_weights_are_cut_off_is_not_served(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 400)
    shutil.copytree(stories260k, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut" / "notes.safetensors").write_bytes(b"never loaded")
    result = kea("models", str(tmp_path / "cut"))
    assert result.exit_code == 1
    assert result.stdout.split()[-1] == "no"
    assert f"{file} is cut off: it has {len(whole) // 2:,} of {len(whole):,} bytes." in result.stderr
    assert "config.json" not in result.stderr


def test_models_as_json(stories260k: Path) -> None:
    result = kea("models", str(stories260k), "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads(result.stdout)
    assert model["family"] == "llama"
    assert model["kv_token_bytes"] == 5 * 2 * 4 * 8 * 2  # layers, keys and values, heads, width, bytes
    assert model["refusal"] is None


def test_without_names_the_embedded_model_and_the_cache_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots"
    write_config(snapshot / "abc", model_type="llama", num_hidden_layers=2, hidden_size=64, vocab_size=99)
    (tmp_path / "hub" / "models--some--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--model" / "refs" / "main").write_text("abc")
    (tmp_path / "hub" / "models--some--model" / "blobs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    result = kea("models", "--json")
    assert result.exit_code == 0, result.stderr
    names = [model["name"] for model in json.loads(result.stdout)]
    assert names == ["kea-embedded", "some/model"]


def test_doctor_tells_the_machine(embedded_model: Path) -> None:
    result = kea("doctor")
    assert result.exit_code == 0, result.stdout
    for words in ("python", "torch", "transformers", "numba", "cores", "free memory", "GPU"):
        assert words in result.stdout
    assert "embedded model   installed" in result.stdout
    assert "extra" not in result.stdout  # none of them is used by what Kea does so far


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (5, "5"),
        (999, "999"),
        (1000, "1 k"),
        (260_000, "260 k"),
        (6_160_000, "6.16 M"),
        (70_500_000_000, "70.5 B"),
    ],
)
def test_counts(value: int | None, text: str) -> None:
    assert _count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (500, "500 B"), (1280, "1.25 KiB"), (1_040_000, "1016 KiB"), (2**34, "16 GiB")]
)
def test_sizes(value: int | None, text: str) -> None:
    assert _size(value) == text
