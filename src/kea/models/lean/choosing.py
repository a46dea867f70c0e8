"""What the lean decoder's program draws tokens with, where a decode step runs for several rounds. Knows no requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kea.kernels import choosing, draws
from kea.kernels.program import Operation
from kea.models.base import DrawOrder

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

NAME = "choices"
"""The operation, whose chunks are rows: none of them where the tokens are drawn elsewhere."""


class Choosing:
    """The arguments of a recording's draws, from its logits [R, padded V] to its tokens and positions [R]."""

    def __init__(self, logits: F32, vocab_size: int, ids: I64, positions: I64) -> None:
        num_rows = len(logits)
        self._rounds, self._drawn = np.zeros((2, num_rows), np.int64)
        self._settings = np.zeros((num_rows, draws.NUM_SETTINGS))
        self._noise = np.zeros((num_rows, draws.NUM_NOISE), np.uint64)
        self._draw = d = np.zeros(draws.NUM_DRAW, np.int64)
        d[draws.LOGITS], d[draws.STRIDE], d[draws.VOCAB_SIZE] = logits.ctypes.data, logits.shape[1], vocab_size
        d[draws.SETTINGS], d[draws.NOISE] = self._settings.ctypes.data, self._noise.ctypes.data
        d[draws.DRAWN] = self._drawn.ctypes.data
        self._arguments = a = np.zeros(choosing.NUM_CHOOSE, np.int64)
        a[choosing.CODE], a[choosing.DRAW_ARGUMENTS] = draws.DRAW.address, d.ctypes.data
        a[choosing.NUM_ROWS], a[choosing.ROUNDS] = num_rows, self._rounds.ctypes.data
        a[choosing.IDS], a[choosing.POSITIONS] = ids.ctypes.data, positions.ctypes.data
        self._tokens: I64 = np.empty((0, num_rows), np.int64)

    @property
    def operation(self) -> Operation:
        return Operation(choosing.CHOOSE, self._arguments, None, NAME)

    def begin(self, order: DrawOrder) -> I64:
        """Get ready for the rounds of an order; return where their tokens will be [rounds, R]."""
        self._settings[:], self._noise[:] = order.settings, order.noise
        self._rounds[:] = 0
        self._tokens = np.empty((order.num_rounds, len(self._rounds)), np.int64)
        self._arguments[choosing.OUT] = self._tokens.ctypes.data
        return self._tokens
