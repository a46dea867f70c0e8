"""Drives OpenVINO GenAI's continuous batching in fp32. Runs in the peer's own python, which does not have Kea."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import openvino
import openvino_genai

_GIB = 1 << 30


class Engine:
    """One ContinuousBatchingPipeline with its prefix cache. Ends with its process."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._keys = itertools.count()
        self._handles: dict[int, Any] = {}

    def load(self, model: str, threads: int, kv_bytes: int, max_seqs: int, **_: Any) -> dict[str, Any]:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = math.ceil(kv_bytes / _GIB) + 1
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = max_seqs
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        note = "arithmetic f32, KV as by default, continuous batching, prefix cache"
        return {"version": f"openvino-genai {openvino_genai.__version__}", "note": note}

    def add(self, prompt: list[int], output_len: int, salt: str = "") -> int:
        if salt:
            raise NotImplementedError("its prefix cache is one for all requests")
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        key = next(self._keys)
        tokens = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handles[key] = self._pipeline.add_request(key, tokens, config)
        return key

    def step(self) -> dict[int, int]:
        self._pipeline.step()
        drawn: dict[int, int] = {}
        for key, handle in list(self._handles.items()):
            while handle.can_read():
                drawn[key] = drawn.get(key, 0) + sum(len(one.generated_ids) for one in handle.read().values())
        if not self._pipeline.has_non_finished_requests():
            self._handles.clear()
        return drawn

    def cancel(self, key: int) -> None:
        if key in self._handles:
            self._handles[key].cancel()

    def has_work(self) -> bool:
        is_busy: bool = self._pipeline.has_non_finished_requests()
        return is_busy


def create_engine() -> Engine:
    return Engine()
