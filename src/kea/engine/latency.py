"""The latency model: how long a step takes, fitted online to what the engine measured. Reads no clock.

seconds = launch + base + a * prefill tokens + b * sequences + c * KV tokens + d * prefill pairs; of a burst launch once
and the rest for each round. Coefficients are at least 0 (while there was no burst, launch is a part of base): weighted
recursive least squares on relative errors. The memory is kept per kind of step (how much prefill, how many sequences);
a kind is forgotten faster when it is seen again, and never wholly otherwise: a thousand steps of decoding do not wash
out what prefill costs. A step far off the prediction is taken as a moderate one, unless several in a row are: then the
machine or the load changed, and the past is mostly forgotten.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from kea.engine.base import LatencySnapshot, StepShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_LIMIT = 1 << 40  # more tokens than any step has
_WINDOW = 256
_NUM_FEATURES = 6
_PREFILL_BOUNDS = (0, 63, 511)
_SEQUENCE_BOUNDS = (1, 7, 31)
_KIND_MEMORY = 0.97
_MEMORY = 0.99
_EARLY_SAMPLES = 32
_SOLVE_STEPS = 32  # that only decode, once much is learned: one changes little, and they cost together what one does
_MIN_WEIGHT = 1e-3
_CHANGE_MEMORY = 0.1
_TRUSTED_SAMPLES = 20
_MAX_SURPRISE = 1.5
_NUM_SURPRISES = 5
_RIDGE = 1e-5
_MARGIN_STEPS = 32


class LatencyModel:
    """Step times learned from steps. Lives as long as its engine; costs some 20 us a step."""

    def __init__(self) -> None:
        num_kinds = (len(_PREFILL_BOUNDS) + 1) * (len(_SEQUENCE_BOUNDS) + 1)
        self._squares = np.zeros((num_kinds, _NUM_FEATURES, _NUM_FEATURES))
        self._products = np.zeros((num_kinds, _NUM_FEATURES))
        self._weights = np.zeros(num_kinds)  # how many steps of each kind are remembered
        self._coefficients = (0.0,) * _NUM_FEATURES
        self._waiting: list[tuple[int, StepShape, float]] = []  # steps to be learned: kind, shape, seconds
        self._errors: deque[float] = deque(maxlen=_WINDOW)
        self._ratios: deque[float] = deque(maxlen=_MARGIN_STEPS)
        self._num_samples = 0
        self._surprises = 0  # in a row: positive for steps slower than predicted, negative for faster ones

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learn from one step that took `seconds`; nothing from a step too short for the clock (0)."""
        if seconds <= 0.0:
            return
        predicted = self.predict(shape)
        if predicted > 0.0:
            self._errors.append(abs(predicted - seconds) / seconds)
            self._ratios.append(seconds / predicted)
        moderated = self._moderate(predicted, seconds)
        self._waiting.append((_kind(shape), shape, moderated))
        self._num_samples += 1
        is_due = self._num_samples < _EARLY_SAMPLES or self._num_samples % _SOLVE_STEPS == 0
        if is_due or self._surprises or shape.prefill_tokens:
            self._learn()
            coefficients = _solve(self._squares.sum(axis=0), self._products.sum(axis=0))
            self._coefficients = tuple(coefficients.tolist())

    def predict(self, shape: StepShape) -> float:
        """Return the seconds that a step of this shape takes; 0 before anything was observed."""
        return math.fsum(map(operator.mul, self._coefficients, _features(shape)))

    def max_prefill_tokens(self, shape: StepShape, limit_s: float, context_len: int = 0) -> int:
        """Return how many tokens a chunk behind `context_len` tokens may add to a step that stays within `limit_s`.

        0 where even one is too many; `NO_LIMIT` while nothing says that prefill costs time.
        """
        _, _, per_token, _, per_kv_token, per_pair = self._coefficients
        room = limit_s - self.predict(add_prefill(shape, 0, context_len))
        if room < 0.0:
            return 0
        slope = per_token + per_kv_token + per_pair * (context_len + 0.5)
        if slope + per_pair <= 0.0:
            return NO_LIMIT
        # per_pair / 2 * n^2 + slope * n = room, solved so that per_pair = 0 needs no case of its own
        num_tokens = 2.0 * room / (slope + math.sqrt(slope * slope + 2.0 * per_pair * room))
        return min(NO_LIMIT, int(num_tokens))

    @property
    def margin(self) -> float:
        """By how much steps took longer than predicted lately, but for the slowest quarter: 1.1 for 10 %; at least 1.

        At most what a lone outlier is taken for.
        """
        if not self._ratios:
            return 1.0
        ratio = sorted(self._ratios)[(3 * len(self._ratios) - 1) // 4]
        return min(_MAX_SURPRISE, max(1.0, ratio))

    def sequence_s(self, context_len: int) -> float:
        """Return the seconds that one more sequence of `context_len` tokens adds to a step; 0 while unknown."""
        return self._coefficients[3] + self._coefficients[4] * context_len

    def snapshot(self) -> LatencySnapshot:
        """Return the coefficients, and how well they predicted recent steps before these were learned from."""
        base, launch, per_token, per_sequence, per_kv_token, per_pair = self._coefficients
        error = float(np.median(self._errors)) if self._errors else None
        return LatencySnapshot(base + launch, per_token, per_sequence, per_kv_token, self._num_samples, error, per_pair)

    def _moderate(self, predicted: float, seconds: float) -> float:
        """Return the measured time, or the nearest believable one where it stands alone far off the prediction."""
        if self._num_samples < _TRUSTED_SAMPLES or predicted <= 0.0:
            return seconds
        believable = min(max(seconds, predicted / _MAX_SURPRISE), predicted * _MAX_SURPRISE)
        direction = int(seconds > believable) - int(seconds < believable)
        if direction == 0:
            self._surprises = 0
            return seconds
        self._surprises = direction if self._surprises * direction < 0 else self._surprises + direction
        if abs(self._surprises) < _NUM_SURPRISES:
            return believable
        self._surprises = 0
        self._learn()
        self._scale_memory(np.full_like(self._weights, _CHANGE_MEMORY))
        return seconds

    def _learn(self) -> None:
        """Add the steps that wait to what is remembered: those of one kind in a row at once."""
        for kind, group in itertools.groupby(self._waiting, key=operator.itemgetter(0)):
            rows = np.array([[value / seconds for value in _features(shape)] for _, shape, seconds in group])
            ages = np.arange(len(rows))[::-1]
            factors = np.full_like(self._weights, _MEMORY)
            factors[kind] = _KIND_MEMORY
            self._scale_memory(factors ** len(rows))
            shares = _KIND_MEMORY**ages
            self._squares[kind] += (rows * shares[:, None]).T @ rows
            self._products[kind] += shares @ rows
            self._weights[kind] += shares.sum()
        self._waiting.clear()

    def _scale_memory(self, factors: NDArray[np.float64]) -> None:
        factors = np.where(self._weights > _MIN_WEIGHT, factors, 1.0)
        self._weights *= factors
        self._products *= factors[:, None]
        self._squares *= factors[:, None, None]


def add_prefill(shape: StepShape, num_tokens: int, context_len: int = 0) -> StepShape:
    """Return the step with one more sequence: a chunk of `num_tokens` behind `context_len` tokens."""
    return StepShape(
        shape.prefill_tokens + num_tokens,
        shape.num_sequences + 1,
        shape.kv_tokens + context_len + num_tokens,
        shape.prefill_pairs + num_tokens * context_len + num_tokens * (num_tokens + 1) / 2,
    )


def _features(shape: StepShape) -> tuple[float, ...]:
    rounds = shape.num_rounds
    sequences = rounds * shape.num_sequences
    kv_tokens = rounds * shape.kv_tokens + sequences * (rounds - 1) / 2  # each round, every sequence is a token longer
    return rounds, 1.0, shape.prefill_tokens, sequences, kv_tokens, shape.prefill_pairs


def _kind(shape: StepShape) -> int:
    prefill = sum(shape.prefill_tokens > bound for bound in _PREFILL_BOUNDS)
    sequences = sum(shape.num_sequences > bound for bound in _SEQUENCE_BOUNDS)
    return prefill * (len(_SEQUENCE_BOUNDS) + 1) + sequences


def _solve(squares: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the x >= 0 that minimises x A x / 2 - b x (Lawson and Hanson, 1974, chapter 23)."""
    scale = np.sqrt(np.diag(squares))
    scale[scale == 0.0] = np.inf  # never seen: the coefficient stays 0
    matrix = squares / np.outer(scale, scale) + _RIDGE * np.eye(len(scale))
    target = products / scale
    solution = np.zeros_like(target)
    passive = np.zeros(len(target), dtype=bool)
    for _ in range(3 * len(target)):
        gradient = np.where(passive, 0.0, target - matrix @ solution)
        entering = int(np.argmax(gradient))
        if gradient[entering] <= 1e-12:
            break
        passive[entering] = True
        solution = _step(matrix, target, solution, passive)
    return solution / scale


def _step(
    matrix: NDArray[np.float64], target: NDArray[np.float64], solution: NDArray[np.float64], passive: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Move to the minimum over the passive coefficients; those that would turn negative leave `passive`."""
    while True:
        wanted = np.zeros_like(target)
        wanted[passive] = np.linalg.solve(matrix[np.ix_(passive, passive)], target[passive])
        negative = passive & (wanted <= 0.0)
        if not negative.any():
            return wanted
        share = float((solution[negative] / (solution[negative] - wanted[negative])).min())
        solution = solution + share * (wanted - solution)
        passive &= solution > 1e-15
        solution = np.where(passive, solution, 0.0)
