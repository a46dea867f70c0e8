"""Draws of a whole batch on a CPU: one call of our kernels, no operator of torch. Knows no requests.

Gives the tokens of `drawing`, whose laws and randomness it uses. Owns the arrays that tell the kernels how rows are
drawn; they are made anew only where the batch has changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.threads import running_kernels
from kea.engine.drawing import MASK, TINY
from kea.engine.penalties import RowState
from kea.kernels import draws
from kea.kernels.program import TEAM, Operation, Program
from kea.types import Sampling

ONE_THREAD_NUMEL = 1 << 20


class CpuDraws:
    """How the rows of the last batch are drawn. Lives with its sampler."""

    def __init__(self) -> None:
        self._states: list[RowState] = []
        self._settings = np.empty((0, draws.NUM_SETTINGS))
        self._noise = np.empty((0, draws.NUM_NOISE), np.uint64)
        self._drawn = np.empty(0, np.int64)
        self._arguments = np.zeros(draws.NUM_DRAW, np.int64)

    def draw(
        self, logits: torch.Tensor, states: Sequence[RowState], num_ahead: Sequence[int] | None = None
    ) -> list[int | None]:
        """Return each row's token of the logits [R, V] fp32; None where none is finite or one is not a number.

        `num_ahead`: how many tokens of each row are drawn that its state does not know yet (None: of no row any).
        """
        if states != self._states:
            self._follow(states)
        self._noise[:, 1] = [state.num_drawn for state in states]
        if num_ahead is not None:
            self._noise[:, 1] += np.array(num_ahead, dtype=np.uint64)
        values = logits.contiguous().numpy()
        a = self._arguments
        a[draws.LOGITS], a[draws.STRIDE], a[draws.VOCAB_SIZE] = values.ctypes.data, values.shape[1], values.shape[1]
        if values.size <= ONE_THREAD_NUMEL:
            draws.draw_rows(draws.DRAW.address, a.ctypes.data, len(states))
        else:
            with running_kernels() as num_threads:
                TEAM.run(Program([Operation(draws.DRAW, a, len(states))]), num_threads)
        token_ids: list[int] = self._drawn.tolist()
        return [None if token_id == draws.NO_TOKEN else token_id for token_id in token_ids]

    def _follow(self, states: Sequence[RowState]) -> None:
        self._states = list(states)
        self._settings = draw_settings(states)
        self._noise = draw_noise(states)
        self._drawn = np.empty(len(states), np.int64)
        places = (self._settings, self._noise, self._drawn)
        self._arguments[draws.SETTINGS : draws.DRAWN + 1] = [place.ctypes.data for place in places]


def draw_settings(states: Sequence[RowState]) -> NDArray[np.float64]:
    """Return how the kernels draw rows [R, NUM_SETTINGS]."""
    return np.array([_settings(state.sampling) for state in states])


def draw_noise(states: Sequence[RowState]) -> NDArray[np.uint64]:
    """Return what the rows' next draws are made of [R, NUM_NOISE]: the seed, the index of the draw."""
    return np.array([(state.seed & MASK, state.num_drawn) for state in states], dtype=np.uint64)


def _settings(sampling: Sampling) -> tuple[float, float, float, float]:
    least = max(draws.LEAST_Z, math.log(sampling.min_p) if sampling.min_p > 0.0 else -math.inf)
    temperature = 0.0 if sampling.is_greedy else max(sampling.temperature, TINY)
    return temperature, least, sampling.top_p, float(sampling.top_k)
