"""Drives vLLM's offline engine in fp32, in one process. Runs in the peer's own python, which does not have Kea."""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any

import torch
from vllm import LLM, SamplingParams

_BLOCK_TOKENS = 128  # of a block of its KV on a CPU


class Engine:
    """One LLM, with its own defaults (compiled graphs, prefix cache). Ends with its process."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._keys = itertools.count()
        self._seen: dict[int, int] = {}  # tokens of each request so far: outputs are reported whole

    def load(
        self, model: str, *, threads: int, kv_tokens: int, kv_bytes: int, max_len: int, max_seqs: int, **_: Any
    ) -> dict[str, Any]:
        """Load the model; its KV has room for the blocks of every sequence that are not full."""
        torch.set_num_threads(threads)  # in one process it stays as it is set before
        room = kv_bytes + kv_bytes // kv_tokens * max_seqs * _BLOCK_TOKENS
        self._engine = LLM(
            model,
            dtype="float32",
            max_model_len=max_len,
            max_num_seqs=max_seqs,
            kv_cache_memory_bytes=room,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
        ).llm_engine
        version = importlib.metadata.version("vllm")
        return {"version": f"vllm {version}", "note": "arithmetic float32, compiled graphs, prefix cache"}

    def add(self, prompt: list[int], output_len: int, salt: str = "") -> int:
        key = next(self._keys)
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        request: dict[str, Any] = {"prompt_token_ids": prompt}
        if salt:
            request["cache_salt"] = salt
        self._engine.add_request(str(key), request, params)
        return key

    def step(self) -> dict[int, int]:
        drawn: dict[int, int] = {}
        for output in self._engine.step():
            key = int(output.request_id.split("-")[0])
            length = len(output.outputs[0].token_ids)
            if length > self._seen.get(key, 0):
                drawn[key] = length - self._seen.get(key, 0)
            self._seen[key] = length
        return drawn

    def cancel(self, key: int) -> None:
        self._engine.abort_request([str(key)])

    def has_work(self) -> bool:
        is_busy: bool = self._engine.has_unfinished_requests()
        return is_busy


def create_engine() -> Engine:
    return Engine()
