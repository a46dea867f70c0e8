"""A decoder that fails at the second of two rows: stands before a real one that draws tokens itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.base import LayerCache
from kea.attention.storage import pack, unpack
from kea.models.base import NO_TOKEN, Decoding, DrawingDecoder, DrawOrder, StepInput


class FaultyDecoder:
    """Same methods as `kea.models.base.DrawingDecoder`, but for the cache."""

    can_draw = True

    def __init__(self, model: DrawingDecoder, *, draws_nothing: bool) -> None:
        self.facts = model.facts
        self.forward = model.forward
        self._model = model
        self._draws_nothing = draws_nothing

    def begin(self, step: StepInput, cache: tuple[LayerCache, ...], order: DrawOrder) -> Decoding:
        return FaultyDecoding(self._model.begin(step, cache, order), step, cache, self._draws_nothing)


@dataclass
class FaultyDecoding:
    """Computes what is no number for the second of two rows, or fails to draw for it."""

    decoding: Decoding
    step: StepInput
    cache: tuple[LayerCache, ...]
    draws_nothing: bool

    def try_extend(self, row: int, index: int, page: int) -> bool:
        return self.decoding.try_extend(row, index, page)

    def run(self, num_rounds: int) -> NDArray[np.int64]:
        if len(self.step.token_ids) != 2:
            return self.decoding.run(num_rounds)
        if self.draws_nothing:
            tokens = self.decoding.run(num_rounds)
            tokens[-1, 1] = NO_TOKEN
            return tokens
        seen = self.step.plan.sequences[1]
        slot = seen.page_table[(seen.position - 1) // 16] * 16 + (seen.position - 1) % 16
        keys = self.cache[0].keys
        whole = keys[slot].clone()
        keys[slot] = pack(torch.full_like(unpack(whole), torch.nan), keys.dtype)  # reaches the keys of the last layer
        tokens = self.decoding.run(num_rounds)
        keys[slot] = whole
        return tokens
