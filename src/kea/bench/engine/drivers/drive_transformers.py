"""Drives transformers' own model in fp32 by forward passes, which is generate without its bookkeeping.

Runs in the peer's own python, which does not have Kea. Sequences of a batch have one length: nothing is padded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

_KEPT_TOKENS = 40_000
Layers = list[tuple[torch.Tensor, torch.Tensor]]


class Driver:
    """One model. Keeps the KV of prompts that it has computed, so that a later round does not compute them again."""

    def __init__(self) -> None:
        self._model: Any = None
        self._kept: dict[tuple[int, ...], Layers] = {}

    def load(self, model: str, threads: int, **_: Any) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
        self._model.eval()
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"version": version, "note": "arithmetic float32, sdpa, dynamic cache"}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt on an empty cache, to its first token."""
        started = time.perf_counter()
        self._forward(torch.tensor([prompt]), DynamicCache())
        return {"seconds": time.perf_counter() - started}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps that draw one token for each of the prompts' sequences."""
        if len(set(map(len, prompts))) > 1:
            raise NotImplementedError("a batch of its sequences has one length")
        cache = self._cache(prompts)
        tokens = torch.tensor([[100 + index] for index in range(len(prompts))])
        times = []
        for _ in range(warmups + steps):
            started = time.perf_counter()
            tokens = self._forward(tokens, cache)
            times.append(time.perf_counter() - started)
        return {"step_s": times[warmups:]}

    def shared(
        self, *, prefix: list[int], groups: list[list[int]], prompts: list[list[Any]], share: bool, **rest: Any
    ) -> dict[str, Any]:
        """Time steps of sequences under one prefix, which each of them holds."""
        if share:
            raise NotImplementedError("its cache holds every sequence whole")
        whole = [prefix + groups[group] + own for group, own in prompts] + rest["strangers"]
        return self.decode(whole, rest["steps"], rest["warmups"])

    def warm(self, prompt: list[int]) -> dict[str, Any]:
        raise NotImplementedError("it has no prefix cache")

    def arrivals(self, requests: list[Any]) -> dict[str, Any]:
        raise NotImplementedError("its generate has no scheduler")

    def unloaded(self, requests: list[Any]) -> dict[str, Any]:
        return self.arrivals(requests)

    def _forward(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        output = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        drawn: torch.Tensor = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        return drawn

    def _cache(self, prompts: Sequence[list[int]]) -> Any:
        """Return a cache that holds the prompts, each as a row."""
        rows = [self._computed(prompt) for prompt in prompts]
        cache = DynamicCache()
        for layer in range(len(rows[0])):
            keys, values = (torch.cat([row[layer][part] for row in rows]) for part in (0, 1))
            cache.update(keys, values, layer)
        return cache

    def _computed(self, prompt: list[int]) -> Layers:
        key = tuple(prompt)
        if key not in self._kept:
            cache = DynamicCache()
            self._forward(torch.tensor([prompt]), cache)
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            if sum(map(len, self._kept)) + len(prompt) > _KEPT_TOKENS:
                return layers
            self._kept[key] = layers
        return self._kept[key]


def create_driver() -> Driver:
    return Driver()
