"""What is refused before a model is loaded: the directories here have a config and no weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kea.engine.checking import check_engine
from kea.engine.config import EngineConfig
from kea.errors import InvalidRequest, KeaError

KV_TOKEN_BYTES = 5 * 2 * 4 * 8 * 4  # layers, keys and values, heads, width, bytes


@pytest.fixture
def bare(stories260k: Path, tmp_path: Path) -> str:
    shutil.copy(stories260k / "config.json", tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("length", [1, 512, None])
def test_what_the_model_can_have_is_not_refused(bare: str, length: int | None) -> None:
    check_engine(EngineConfig(bare, max_model_len=length, kv_memory_bytes=512 * KV_TOKEN_BYTES))


def test_a_length_above_the_models_is_refused(bare: str) -> None:
    with pytest.raises(InvalidRequest, match="max_model_len is 513; it must be at least 1 and at most 512"):
        check_engine(EngineConfig(bare, max_model_len=513))


def test_a_length_above_that_of_a_model_that_was_seen_before_is_refused_without_a_wait(
    bare: str, tmp_path: Path
) -> None:
    code = (
        "import sys; from kea.engine.checking import check_engine; from kea.engine.config import EngineConfig\n"
        f"try: check_engine(EngineConfig({bare!r}, max_model_len=513))\n"
        "except Exception as error: print(error, {'torch', 'transformers'} & set(sys.modules))"
    )
    said = [
        subprocess.check_output(
            [sys.executable, "-c", code], text=True, env={**os.environ, "HOME": str(tmp_path / "home")}
        )
        for _ in range(2)
    ]
    assert said[1] == "max_model_len is 513; it must be at least 1 and at most 512. set()\n"
    assert said[0].startswith("max_model_len is 513; it must be at least 1 and at most 512. {")


@pytest.mark.parametrize(("kv_cache_dtype", "item_bytes"), [("auto", 4), ("float16", 2)])
def test_a_kv_memory_that_is_too_small_is_refused(bare: str, kv_cache_dtype: str, item_bytes: int) -> None:
    enough = 512 * KV_TOKEN_BYTES * item_bytes // 4
    given = {"kv_cache_dtype": kv_cache_dtype, "max_model_len": 512}
    check_engine(EngineConfig(bare, kv_memory_bytes=enough, **given))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"holds 496 tokens; one context may need 512") as caught:
        check_engine(EngineConfig(bare, kv_memory_bytes=enough - 1, **given))  # type: ignore[arg-type]
    assert caught.value.param == "kv_memory_bytes"


def test_a_weight_file_that_is_cut_off_is_refused(stories260k: Path, tmp_path: Path) -> None:
    shutil.copytree(stories260k, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KeaError, match="is cut off") as caught:
        check_engine(EngineConfig(str(tmp_path / "model")))
    assert "config.json" not in str(caught.value)
