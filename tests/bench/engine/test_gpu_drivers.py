"""What drives systems on a GPU, on a CPU with a tiny model: every line but events, captured graphs and compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kea.bench.engine.base import Precision
from kea.bench.engine.drivers import drive_machine_gpu, drive_transformers_batching, drive_transformers_static
from kea.bench.engine.drivers.drive_kea import Driver
from kea.bench.engine.peers import Absent, Weights, machine_spec, peer_specs, peers_of
from kea.bench.engine.settings import check_on_device, read_peers, read_scenarios
from kea.bench.engine.shapes import SHAPES, Shape, write_checkpoint
from kea.engine.config import EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.errors import InvalidRequest

TINY = Shape("tiny", 2, 64, 64, 4, 2, 400, head_dim=16, max_len=512)
PROMPTS = [[3 + index] * 20 for index in range(3)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TINY, "bfloat16", folder)
    return folder


def test_generate_with_a_static_cache_times_every_step(tiny: Path) -> None:
    driver = drive_transformers_static.create_driver()
    assert "static" in driver.load(str(tiny), threads=1, device="cpu", kv_tokens=1)["note"]
    assert driver.prefill(PROMPTS[0])["seconds"] > 0
    steps = driver.decode(PROMPTS, steps=3, warmups=2)["step_s"]
    assert len(steps) == 3
    assert all(seconds > 0 for seconds in steps)
    with pytest.raises(NotImplementedError):
        driver.decode([[3], [4, 5]], steps=1, warmups=1)


def test_continuous_batching_counts_the_steps_in_which_all_decode(tiny: Path) -> None:
    driver = drive_transformers_batching.create_driver()
    driver.load(str(tiny), threads=1, device="cpu", kv_tokens=1024, max_seqs=4)
    assert driver.prefill(PROMPTS[0])["seconds"] > 0
    steps = driver.decode(PROMPTS, steps=3, warmups=2)["step_s"]
    assert len(steps) == 3
    assert all(seconds > 0 for seconds in steps)


def test_bounds_of_a_device_have_the_names_that_figures_read() -> None:
    driver = drive_machine_gpu.create_driver()
    loaded = driver.load(device="cpu", sizes={"bf16": 1 << 16}, matrices=[[32, 16], [16, 32]], threads=1)
    assert loaded["note"] == "no GPU"
    found = driver.bounds((4, 8))
    assert found["read"]["bf16"] > 0
    assert found["product"].keys() == {"4", "8"}


def test_steps_that_overlap_are_timed_as_they_are_served(tiny: Path) -> None:
    """As on a GPU: a step's tokens come with the next call, and each of the contexts has one in every measured step."""
    driver = Driver()
    driver.load(str(tiny), threads=1, kv_bytes=4096 * TINY.kv_token_values * 4, max_len=400)
    core = driver.core
    limits = resolve_limits(
        EngineConfig(str(tiny), kv_memory_bytes=4096 * TINY.kv_token_values * 4), core._model.facts, 0
    )
    object.__setattr__(limits, "overlaps", True)
    object.__setattr__(limits, "max_burst_s", 0.0)
    driver._core = EngineCore(core._model, core._tokenizer, limits, core._clock)
    assert len(driver.decode(PROMPTS, steps=4, warmups=2)["step_s"]) == 4
    assert driver.prefill(PROMPTS[0])["seconds"] > 0
    warm = driver.warm([7] * 200)
    assert warm["cold_s"] > 0
    assert driver.steady(PROMPTS * 2, output_len=9, num_running=2)["num_steps"] > 9
    driver.arrivals([(0.0, PROMPTS[0], 3), (0.01, PROMPTS[1], 2)])
    members: list[Any] = [(0, [80 + index] * 5) for index in range(3)]
    shared = driver.shared(
        prefix=list(range(3, 67)), groups=[[]], prompts=members, strangers=[], steps=2, warmups=1, share=True
    )
    assert shared["kv_tokens"] == shared["kv_once_tokens"]
    driver.core.step()
    assert driver.core.snapshot().memory.num_used == 0


def test_peers_and_scenarios_are_those_of_the_device(tmp_path: Path) -> None:
    assert peers_of("cpu") == ("llamacpp", "openvino", "vllm", "transformers")
    assert read_peers("all", "cuda:0") == ("transformers-static", "transformers-batching")
    assert "overhead" in read_scenarios("all", "cpu")
    assert "overhead" not in read_scenarios("all", "cuda:0")
    with pytest.raises(InvalidRequest):
        read_peers("llamacpp", "cuda:0")
    with pytest.raises(InvalidRequest):
        read_scenarios("overhead", "cuda:0")
    assert machine_spec("cuda:0").driver.name == "drive_machine_gpu.py"
    (own,) = peer_specs("transformers-static", tmp_path, Weights(TINY, tmp_path), [Precision.BF16])
    assert not isinstance(own, Absent), "it runs in Kea's own python, and needs no environment"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InvalidRequest, match="no GPU"):
            check_on_device("cuda", [Precision.BF16], "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_on_device("cuda", [Precision.BF16], "auto") == "cuda:0"
    with pytest.raises(InvalidRequest, match="bf16"):
        check_on_device("cuda", [Precision.INT8], "auto")
    with pytest.raises(InvalidRequest, match="auto"):
        check_on_device("cuda", [Precision.BF16], "int8")


def test_the_large_shapes_are_those_of_one_and_of_eight_billion() -> None:
    assert round(SHAPES["1b"].num_parameters / 1e9, 1) == 1.2
    assert round(SHAPES["8b"].num_parameters / 1e9, 1) == 8.0
    assert SHAPES["8b"].kv_token_values * 2 == 131_072


def test_a_tensor_larger_than_a_block_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("kea.bench.engine.shapes._BLOCK_NUMEL", 1000)
    write_checkpoint(TINY, "bfloat16", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].flatten()
    assert weights.shape == (400 * 64,)
    assert torch.equal(weights[:1000], weights[1000:2000])
    assert weights[:1000].float().std() == pytest.approx(0.02, rel=0.2)
