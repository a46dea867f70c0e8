"""Runs a step on the model: page copies, the flattened batch, the forward pass. Owns the KV tensors; knows no
requests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from kea.attention.base import Run, SequencePlan, StepPlan
from kea.engine.draft import StepWork, WorkItem
from kea.memory import KVMemory, PageCopy
from kea.models.base import DecoderModel, StepInput


class Runner:
    """The model and its page pool. Lives as long as its engine."""

    def __init__(self, model: DecoderModel, memory: KVMemory, num_pages: int, page_tokens: int) -> None:
        self._model = model
        self._memory = memory
        self._page_tokens = page_tokens
        self._cache = model.create_cache(num_pages * page_tokens)

    def run(self, work: StepWork, logit_rows: Sequence[int]) -> tuple[torch.Tensor, list[WorkItem]]:
        """Compute a step whose copies are done; return the logits [R, V] fp32 of the given rows of the flattened batch,
        and the items whose KV is not finite.
        """
        step = self._step_input(work.items, logit_rows)
        with torch.inference_mode():
            logits = self._model.forward(step, self._cache)
            return logits, self._unsound(work.items, step.plan.slots)

    def wipe(self, item: WorkItem) -> None:
        """Zero what an item has written, or was to write."""
        slots = self._tensor(self._slots(item))
        for layer in self._cache:
            layer.keys[slots] = 0
            layer.values[slots] = 0

    def _unsound(self, items: Sequence[WorkItem], slots: torch.Tensor) -> list[WorkItem]:
        """Return the items of which a row's KV is not finite. The last layer tells: what is not finite in a layer
        before it reaches it through the residual stream.
        """
        last = self._cache[-1]
        rows = [part.index_select(0, slots).flatten(1) for part in (last.keys, last.values)]
        if all(math.isfinite(part.sum(dtype=torch.float32).item()) for part in rows):
            return []
        is_sound = torch.cat(rows, dim=1).isfinite().all(dim=1).tolist()
        stops = itertools.accumulate(item.num_tokens for item in items)
        return [
            item for item, stop in zip(items, stops, strict=True) if not all(is_sound[stop - item.num_tokens : stop])
        ]

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Perform page copies, in order."""
        for copy in copies:
            src, dst = copy.src * self._page_tokens, copy.dst * self._page_tokens
            for layer in self._cache:
                layer.keys[dst : dst + copy.num_tokens] = layer.keys[src : src + copy.num_tokens]
                layer.values[dst : dst + copy.num_tokens] = layer.values[src : src + copy.num_tokens]

    def _step_input(self, items: Sequence[WorkItem], logit_rows: Sequence[int]) -> StepInput:
        token_ids: list[int] = []
        sequences: list[SequencePlan] = []
        positions: list[int] = []
        slots: list[int] = []
        size = self._page_tokens
        for item in items:
            sequences.append(self._plan(item, len(token_ids)))
            if item.end - item.start == 1:  # most items, and this is done for each of them in every step
                token_ids.append(item.context.tokens[item.start])
                positions.append(item.start)
                slots.append(item.context.pages.pages[item.start // size] * size + item.start % size)
                continue
            token_ids.extend(item.context.tokens[item.start : item.stop])
            token_ids.extend(item.guesses)
            positions.extend(range(item.start, item.end))
            slots.extend(self._slots(item))
        plan = StepPlan(tuple(sequences), self._tensor(slots), self._page_tokens)
        return StepInput(self._tensor(token_ids), self._tensor(positions), self._tensor(logit_rows), plan)

    def _plan(self, item: WorkItem, row: int) -> SequencePlan:
        pages = item.context.pages
        runs = tuple(itertools.starmap(Run, self._memory.visible_runs(pages, item.end)))
        return SequencePlan(row, item.num_tokens, item.start, tuple(pages.pages), runs)

    def _slots(self, item: WorkItem) -> list[int]:
        """Return where the item's tokens are written. Plain numbers: most items have one token."""
        size = self._page_tokens
        table = item.context.pages.pages
        return [table[position // size] * size + position % size for position in range(item.start, item.end)]

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(values, dtype=np.int64))
        device = self._model.facts.device
        return tensor if device == "cpu" else tensor.to(device, non_blocking=True)
