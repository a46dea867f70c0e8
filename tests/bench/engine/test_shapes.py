"""Shapes and the checkpoints made of them: counts as in the files, tokenizers with every id, one cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from kea.bench.engine.base import Precision
from kea.bench.engine.shapes import SHAPES, Shape, make_checkpoint, read_shape, write_checkpoint
from kea.errors import InvalidRequest

TINY = Shape("tiny", 2, 32, 64, 4, 2, 400, head_dim=8, max_len=256)


@pytest.mark.parametrize(("name", "millions"), [("25m", 15.7), ("100m", 110.9), ("360m", 361.8)])
def test_the_shapes_have_the_parameters_that_they_are_known_by(name: str, millions: float) -> None:
    assert SHAPES[name].num_parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_checkpoint_holds_what_the_shape_counts(tmp_path: Path, is_tied: bool) -> None:
    shape = Shape("tiny", 2, 32, 64, 4, 2, 400, head_dim=8, is_tied=is_tied, max_len=256)
    write_checkpoint(shape, "bfloat16", tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping
    assert sum(tensor.numel() for tensor in tensors) == shape.num_parameters
    assert {str(tensor.dtype) for tensor in tensors} == {"torch.bfloat16"}
    assert read_shape(tmp_path).num_parameters == shape.num_parameters


@pytest.mark.parametrize("vocab_size", [300, 8192, 49152])
def test_every_token_id_has_a_word(tmp_path: Path, vocab_size: int) -> None:
    shape = Shape("tiny", 1, 8, 8, 1, 1, vocab_size, head_dim=8)
    write_checkpoint(shape, "float32", tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))


def test_a_checkpoint_is_made_once(tmp_path: Path) -> None:
    first = make_checkpoint(TINY, "bfloat16", tmp_path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert make_checkpoint(TINY, "bfloat16", tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert make_checkpoint(TINY, "float32", tmp_path) != first


def test_one_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    folder = make_checkpoint(TINY, "bfloat16", tmp_path)
    (folder / "made").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert (make_checkpoint(TINY, "bfloat16", tmp_path) / "model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"num_attention_heads": 2})])
def test_a_directory_that_is_no_llama_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidRequest, match="neither a known shape"):
        read_shape(tmp_path)


def test_bytes_read_follow_the_precision() -> None:
    shape = SHAPES["100m"]
    assert shape.weight_bytes(Precision.F32) == 2 * shape.weight_bytes(Precision.BF16)
    assert shape.weight_bytes(Precision.F16) == shape.weight_bytes(Precision.BF16)
    assert shape.weight_bytes(Precision.BF16) == 2 * shape.weight_bytes(Precision.INT8)
