"""Prompt lookup: guesses of the next tokens, found in the context's own tokens (how many are verified:
`kea.engine.guessing`).

A guess never changes what is drawn: its row is used only where all before it were drawn as guessed, and every draw is
the model's own, with the noise that it has without guesses (`kea.engine.drawing`). So an accepted guess saves a step
and a rejected one wastes a row. (Saxena, "Prompt Lookup Decoding", 2023; verified by drawing, as Leviathan et al.,
ICML '23, do for proposals without a distribution.) Knows no batch, no memory, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from kea.types import Speculation

MAX_PLACES = 8  # how many earlier places of an n-gram are compared
_MEMORY = 0.9
_FIRST_RATIO = 0.5


class PromptLookup:
    """The guesses of one generation. Reads each token of its context once, then O(1) per token; lives with it.

    `hit_ratio` is how often the next token was as guessed, lately. It is kept up also while no guess is verified: what
    was drawn since says which of the last guesses were right.
    """

    def __init__(self, speculation: Speculation) -> None:
        self._most = speculation.num_speculative_tokens
        self._min = speculation.prompt_lookup_min
        self._max = speculation.prompt_lookup_max
        self._last: dict[tuple[int, ...], int] = {}  # by n-gram of the least length: the place behind its last one
        self._earlier: dict[int, int] = {}  # by such a place: the one before it with the same n-gram
        self._num_read = 0
        self._guesses: list[int] = []
        self.hit_ratio = _FIRST_RATIO

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """Return what followed the longest n-gram that the tokens end with, at the last place where it stood before."""
        self._judge(tokens)
        self._read(tokens)
        place = self._find(tokens)
        guesses: list[int] = []
        if place is not None:
            period = len(tokens) - place
            for index in range(self._most):  # what reaches the end goes on with the guesses themselves
                guesses.append(tokens[place + index] if index < period else guesses[index - period])
        self._guesses = guesses
        return guesses

    def _judge(self, tokens: Sequence[int]) -> None:
        """Compare the last guesses with what came, up to the first wrong one."""
        for guess, token_id in zip(self._guesses, tokens[self._num_read :], strict=False):
            is_hit = guess == token_id
            self.hit_ratio = _MEMORY * self.hit_ratio + (1.0 - _MEMORY) * is_hit
            if not is_hit:
                break
        self._guesses = []

    def _read(self, tokens: Sequence[int]) -> None:
        """Note the place behind every n-gram that a token follows."""
        for place in range(max(self._min, self._num_read), len(tokens)):
            gram = tuple(tokens[place - self._min : place])
            earlier = self._last.get(gram)
            if earlier is not None:
                self._earlier[place] = earlier
            self._last[gram] = place
        self._num_read = max(self._num_read, len(tokens))

    def _find(self, tokens: Sequence[int]) -> int | None:
        place = self._last.get(tuple(tokens[-self._min :])) if len(tokens) >= self._min else None
        best, best_len = None, 0
        for _ in range(MAX_PLACES):
            if place is None or best_len == self._max:
                break
            length = self._common_len(tokens, place)
            if length > best_len:
                best, best_len = place, length
            place = self._earlier.get(place)
        return best

    def _common_len(self, tokens: Sequence[int], place: int) -> int:
        """Return how many tokens before `place` are those at the end, at most the longest n-gram that counts."""
        most = min(self._max, place)
        length = self._min
        while length < most and tokens[place - length - 1] == tokens[-length - 1]:
            length += 1
        return length


def try_create_lookup(speculation: Speculation | None) -> PromptLookup | None:
    """Return what guesses for one generation, or None where nothing is to be guessed."""
    if speculation is None or speculation.num_speculative_tokens == 0:
        return None
    return PromptLookup(speculation)
