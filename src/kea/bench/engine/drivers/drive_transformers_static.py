"""Drives transformers' `generate` with a static cache, which compiles its decode step on a GPU.

Every step is timed between two looks of a stopping criterion, which waits for the device. Runs in Kea's python.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

_NUM_COMPILED = 64  # shapes; beyond torch's own limit a step would run uncompiled


class Marks(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """The times at which tokens were there."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        del scores
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Driver:
    """One model. Ends with its process."""

    def __init__(self) -> None:
        self._model: Any = None
        self._device = "cpu"

    def load(self, model: str, threads: int, device: str, **_: Any) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch._dynamo.config.recompile_limit = _NUM_COMPILED
        self._device = device
        self._model = (
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
            .to(device)
            .eval()
        )
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"version": version, "note": "bfloat16, sdpa, generate with a static cache, its decode step compiled"}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt to its first token, its cache allocated before."""
        self._times([prompt], 1)
        return {"seconds": self._times([prompt], 1)[0]}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps that draw one token for each of the prompts' sequences; the first run compiles them."""
        if len(set(map(len, prompts))) > 1:
            raise NotImplementedError("a batch of its sequences has one length")
        self._times(prompts, warmups + steps + 1)
        times = self._times(prompts, warmups + steps + 1)
        return {"step_s": times[1 + warmups :]}

    def _times(self, prompts: list[list[int]], count: int) -> list[float]:
        """Return what the first token and each of the next ones took."""
        marks = Marks(self._device)
        tokens = torch.tensor(prompts, device=self._device)
        config = GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, do_sample=False, cache_implementation="static",
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        started = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([marks]),
            )
        return [end - begin for begin, end in zip([started, *marks.times], marks.times, strict=False)]


def create_driver() -> Driver:
    return Driver()
