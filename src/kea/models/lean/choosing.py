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
"""The operations whose chunks are rows: none of them where the tokens are drawn elsewhere."""

MAX_ROUNDS = 128
"""Of one run."""


class Choosing:
    """The arguments of a recording's draws, from its logits [R, padded V] to its tokens and positions [R]."""

    def __init__(self, logits: F32, vocab_size: int, ids: I64, positions: I64) -> None:
        num_rows = len(logits)
        self.spoilt = np.zeros(num_rows, np.int64)
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
        a[choosing.CAPACITY], a[choosing.SPOILT] = MAX_ROUNDS, self.spoilt.ctypes.data
        self._tokens = np.zeros((MAX_ROUNDS, num_rows), np.int64)
        a[choosing.OUT] = self._tokens.ctypes.data
        self._num_drawn = 0

    @property
    def operation(self) -> Operation:
        return Operation(choosing.CHOOSE, self._arguments, None, NAME)

    def begin(self, order: DrawOrder) -> None:
        """Get ready for rounds whose first tokens are drawn by an order."""
        self._settings[:], self._noise[:] = order.settings, order.noise
        self._rounds[:], self.spoilt[:], self._num_drawn = 0, 0, 0

    def take(self, num_rounds: int) -> I64:
        """Return the tokens of the rounds that have just been run [rounds, R]."""
        first = self._num_drawn % MAX_ROUNDS
        self._num_drawn += num_rounds
        tokens = self._tokens[first : first + num_rounds]
        if len(tokens) == num_rounds:
            return tokens
        return np.concatenate([tokens, self._tokens[: num_rounds - len(tokens)]])
