"""What peers load: weights converted once, also of a checkpoint whose tokenizer the converter does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.bench.engine.base import Precision
from kea.bench.engine.peers import ConversionFailed, PeerKind, Weights, as_gguf, as_is, kea_specs, native_precision
from kea.bench.engine.shapes import Shape, write_checkpoint
from kea.models.stored import read_header

TINY = Shape("tiny", 1, 16, 16, 1, 1, 300, head_dim=16, max_len=64)
# convert --outfile FILE --outtype TYPE DIRECTORY: knows tokenizers that have bytes, and counts how often it is run.
CONVERT = """#!/usr/bin/env bash
echo run >>"$(dirname "$0")/runs"
grep -q '<0x00>' "$5/tokenizer.json" || { echo "tokenizer was not recognized" >&2; exit 1; }
test -f "$5/model.safetensors" && cp "$5/config.json" "$2"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An environment of llama.cpp whose python takes every model for sound."""
    environment = tmp_path / "llamacpp"
    (environment / "bin").mkdir(parents=True)
    for path, text in ((environment / "convert", CONVERT), (environment / "bin" / "python", "#!/bin/sh\nexit 0\n")):
        path.write_text(text)
        path.chmod(0o755)
    return environment


@pytest.fixture
def given(tmp_path: Path) -> Weights:
    source = tmp_path / "given"
    source.mkdir()
    write_checkpoint(TINY, "float32", source)
    return Weights(TINY, tmp_path, source)


def num_runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_weights_are_converted_once(folder: Path, given: Weights) -> None:
    for _ in range(2):
        model, load_args = as_gguf(folder, given, Precision.F32)
        assert model.exists()
        assert load_args == {}
    assert num_runs(folder) == 1


def test_a_tokenizer_that_the_converter_does_not_know_is_replaced(folder: Path, given: Weights) -> None:
    assert given.given is not None
    (given.given / "tokenizer.json").write_text("{}")
    model, _ = as_gguf(folder, given, Precision.F32)
    assert model.exists()
    assert num_runs(folder) == 2
    assert (given.given / "tokenizer.json").read_text() == "{}"


def test_what_cannot_be_converted_is_told_with_the_converter_s_words(folder: Path, given: Weights) -> None:
    (folder / "convert").write_text("#!/bin/sh\necho no such architecture >&2\nexit 1\n")
    with pytest.raises(ConversionFailed, match="no such architecture"):
        as_gguf(folder, given, Precision.F32)


def test_fp16_is_measured_with_a_checkpoint_of_its_own(folder: Path, tmp_path: Path) -> None:
    weights = Weights(TINY, tmp_path / "cache")
    model, _ = as_gguf(folder, weights, Precision.F16)
    assert model.name == "tiny-float16-1-f16.gguf"
    (spec,) = kea_specs(weights, [Precision.F16])
    assert native_precision(spec.model) == Precision.F16
    assert {weight.dtype for weight in read_header(spec.model / "model.safetensors").values()} == {"F16"}


def test_libraries_are_preloaded_where_they_are_there(tmp_path: Path) -> None:
    kind = PeerKind("driver.py", (Precision.F32,), as_is, {"A": "b"}, preloads=("lib/a.so", "lib/b.so"))
    assert kind.process_env(tmp_path) == {"A": "b"}
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "b.so").touch()
    assert kind.process_env(tmp_path) == {"A": "b", "LD_PRELOAD": str(tmp_path / "lib" / "b.so")}
