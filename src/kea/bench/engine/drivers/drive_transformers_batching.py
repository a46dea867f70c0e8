"""Drives transformers' own continuous batching, `generate_batch`, by the times that it notes of every token.

Runs in Kea's python. What it sets up before a batch (its memory, its captured graphs) is in no figure.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

_PAGE_TOKENS, _STEP_TOKENS = 256, 8192
_SPARE_TOKENS = 128  # of each output beyond what is measured: others may still be in their prompts


class Driver:
    """One model. Ends with its process."""

    def __init__(self) -> None:
        self._model: Any = None
        self._memory: dict[str, int] = {}

    def load(self, model: str, *, threads: int, device: str, kv_tokens: int, max_seqs: int, **_: Any) -> dict[str, Any]:
        """Load the model; its pages have room for `kv_tokens` and for those of every sequence that are not full."""
        torch.set_num_threads(threads)
        pages = -(-kv_tokens // _PAGE_TOKENS) + max_seqs
        self._memory = {"page_size": _PAGE_TOKENS, "num_blocks": pages, "max_batch_tokens": _STEP_TOKENS}
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"version": version, "note": f"bfloat16, generate_batch in steps of {_STEP_TOKENS} tokens"}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt from the request to its first token."""
        (row,) = self._generate([prompt], 2)
        return {"seconds": row[1][0] - row[0]}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time the steps of one request while all of the prompts' requests decode."""
        rows = [times for _, times in self._generate(prompts, warmups + steps + _SPARE_TOKENS)]
        begin, end = max(times[0] for times in rows), min(times[-1] for times in rows)
        inside = [at for at in rows[-1] if begin <= at <= end]
        gaps = [later - earlier for earlier, later in itertools.pairwise(inside)][warmups:]
        if len(gaps) < steps:
            raise RuntimeError(f"only {len(gaps)} steps had all of the {len(prompts)} requests")
        return {"step_s": gaps[:steps]}

    def _generate(self, prompts: list[list[int]], count: int) -> list[tuple[float, list[float]]]:
        """Return when each request was made, and when each of its tokens was there, on the performance counter."""
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(**self._memory)
        started = time.perf_counter()
        found = self._model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, record_timestamps=True
        )
        rows = []
        for output in found.values():
            if output.error or len(output.timestamps) < count:
                raise RuntimeError(f"a request ended after {len(output.generated_tokens)} tokens: {output.error}")
            rows.append((max(started, output.created_time), list(output.timestamps)))
        return rows


def create_driver() -> Driver:
    return Driver()
