"""The load client against vLLM's own server, from the environment that `make peers` builds."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from kea.bench.load.client import Target
from kea.bench.load.figures import count, latencies_ms
from kea.bench.load.lengths import Fixed, Uniform
from kea.bench.load.plan import Arrivals, Workload
from kea.bench.serving import ServeSettings, measure
from tests.bench.test_serving import Heard
from tests.conftest import ROOT

SERVE = ROOT / ".peers" / "vllm" / "serve"
READY_S = 400.0
pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.timeout(600)]


def write_model(folder: Path, tokenizer: Path) -> Path:
    """Write a random Llama with heads of 64: vLLM's attention on CPU refuses smaller ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder


@pytest.fixture
def vllm_url(tmp_path: Path, stories260k: Path) -> Iterator[str]:
    if not SERVE.exists():
        pytest.skip("needs the environment of `make peers`, which is not there")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = write_model(tmp_path / "model", stories260k)
    flags = ("--dtype", "float32", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port))
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([SERVE, model, *flags], stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx2.get(url, timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(1.0)
    pytest.fail(f"vLLM was not ready within {READY_S:g} s: {log.read_text()[-2000:]}")


async def test_vllm_answers_the_asked_load(vllm_url: str) -> None:
    workload = Workload(12, 0, Arrivals(rate_per_s=4.0), Uniform(20, 100), Fixed(8))
    measured = await measure(ServeSettings((Target("vllm", vllm_url),), workload), Heard(), asyncio.Event())
    assert measured is not None
    counts = count(measured.served[0].rounds)
    assert (counts.answered, counts.failed, counts.short_answers, counts.uncounted) == (12, 0, 0, 0)
    assert counts.input_tokens == sum(planned.input_len or 0 for planned in measured.plans[0])
    assert counts.output_tokens == 96
    # vLLM may put several tokens into one chunk.
    assert 0 < len(latencies_ms(measured.served[0].rounds)["itl"]) <= 12 * 7
