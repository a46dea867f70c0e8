"""Runs a step on the model: page copies, the flattened batch, the forward pass. Owns the KV tensors; knows no
requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from kea.attention.base import Run, SequencePlan, StepPlan
from kea.engine.draft import StepWork, WorkItem
from kea.engine.soundness import FindUnsound, Soundness
from kea.engine.standing import DecodeBatch
from kea.engine.transfer import send, send_index
from kea.memory import KVMemory, PageCopy
from kea.models.base import CapturingDecoder, DecoderModel, DrawingDecoder, DrawOrder, StepInput

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class DrawnAhead:
    """Tokens [R] int64 that were drawn on the device and not read yet, and by context which row is its own."""

    tokens: torch.Tensor
    rows: Mapping[int, int]


class Runner:
    """The model and its page pool. Lives as long as its engine. `can_draw`: the model draws tokens itself."""

    def __init__(
        self, model: DecoderModel, memory: KVMemory, num_pages: int, page_tokens: int, *, max_rows: int = 256
    ) -> None:
        self._model = model
        self._memory = memory
        self._page_tokens = page_tokens
        self._cache = model.create_cache(num_pages * page_tokens)
        self.can_draw = isinstance(model, DrawingDecoder) and model.can_draw
        self._soundness = Soundness(self._cache[-1])
        if isinstance(model, CapturingDecoder):
            model.capture(self._cache, page_tokens, max_rows)

    def run(
        self, work: StepWork, logit_rows: Sequence[int], ahead: DrawnAhead | None = None
    ) -> tuple[torch.Tensor, FindUnsound]:
        """Compute a step whose copies are done; return the logits [R, V] fp32 of the given rows of the flattened batch,
        and what finds the items whose KV is not finite.

        On a device both are on their way: what is done with the logits there is queued behind them, and whoever first
        reads something back waits for the step. `ahead` has the tokens that contexts do not know yet.
        """
        step = self._step_input(work.items, logit_rows)
        with torch.inference_mode():
            if ahead is not None:
                step = _with_drawn(step, work.items, ahead)
            logits = self._model.forward(step, self._cache)
            return logits, self._soundness.begin(work.items, step.plan.slots)

    def goes_on(self, batch: DecodeBatch) -> bool:
        """Whether the model has what a batch's next step goes on from; it is told of the pages that the batch got."""
        pages, batch.pages = batch.pages, []
        return batch.decoding is not None and all(batch.decoding.try_extend(*page) for page in pages)

    def begin(self, batch: DecodeBatch, order: DrawOrder) -> None:
        """Let the model have a batch, as its contexts are now."""
        step = self._step_input(batch.items, range(len(batch.contexts)))
        batch.decoding = cast(DrawingDecoder, self._model).begin(step, self._cache, order)

    def decode(self, batch: DecodeBatch) -> list[list[int]]:
        """Compute a batch's next step; return its tokens [R][rounds], below 0 as `Decoding.run` gives them."""
        assert batch.decoding is not None
        tokens: list[list[int]] = batch.decoding.run(batch.num_rounds).T.tolist()
        return tokens

    def wipe(self, item: WorkItem) -> None:
        """Zero what an item has written, or was to write."""
        (slots,) = self._tensors(self._slots(item))
        for layer in self._cache:
            layer.keys[slots] = 0
            layer.values[slots] = 0

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
                tokens = item.context.tokens
                token_ids.append(tokens[item.start] if item.start < len(tokens) else 0)
                positions.append(item.start)
                slots.append(item.context.pages.pages[item.start // size] * size + item.start % size)
                continue
            token_ids.extend(item.context.tokens[item.start : item.stop])
            token_ids.extend(item.guesses)
            positions.extend(range(item.start, item.end))
            slots.extend(self._slots(item))
        ids, at, where, wanted = self._tensors(token_ids, positions, slots, logit_rows)
        return StepInput(ids, at, wanted, StepPlan(tuple(sequences), where, self._page_tokens))

    def _plan(self, item: WorkItem, row: int) -> SequencePlan:
        pages, num_rows = item.context.pages, item.num_tokens
        stop = item.start + num_rows
        seen = itertools.starmap(Run, self._memory.visible_runs(pages, stop)) if pages.is_tainted else (Run(0, stop),)
        return SequencePlan(row, num_rows, item.start, pages.table, tuple(seen))

    def _slots(self, item: WorkItem) -> list[int]:
        """Return where the item's tokens are written. Plain numbers: most items have one token."""
        size = self._page_tokens
        table = item.context.pages.pages
        return [table[position // size] * size + position % size for position in range(item.start, item.end)]

    def _tensors(self, *parts: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Return the parts on the device, sent in one transfer where that is another one."""
        if self._model.facts.device == "cpu":
            return tuple(torch.from_numpy(np.array(part, dtype=np.int64)) for part in parts)
        joined = np.array(list(itertools.chain.from_iterable(parts)), dtype=np.int64)
        sent = send(joined, torch.device(self._model.facts.device))
        stops = itertools.accumulate(map(len, parts))
        return tuple(sent[stop - len(part) : stop] for part, stop in zip(parts, stops, strict=True))


def _with_drawn(step: StepInput, items: Sequence[WorkItem], ahead: DrawnAhead) -> StepInput:
    """Return the step with the tokens that are known on the device alone, in the rows of their contexts."""
    rows: list[int] = []
    sources: list[int] = []
    row = 0
    for item in items:
        if item.start >= len(item.context.tokens):
            rows.append(row)
            sources.append(ahead.rows[item.context.context_id])
        row += item.num_tokens
    if rows:
        where = send_index([*rows, *sources], step.token_ids.device)
        step.token_ids.index_copy_(0, where[: len(rows)], ahead.tokens.index_select(0, where[len(rows) :]))
    return step
