"""Invented names: words built from syllables, so that a name is copied and never known. Knows no task."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# Parts in one string: a list of literals would be four times as long and harder to read.
ONSETS = "b bl br c ch d dr f fl g gr h j k kl kr l m n p pr qu r s sh sk st t th tr v w y z"
VOWELS = "a e i o u a e i o u ai ou"
CODAS = "b ck d g k l ld lm m n nd ng nt p r rk rn s sk st t th v x z"
PLACE_ENDINGS = "a burg dale dor field ford gard ham hold holm ia mark mere mont os port stad ton vik wick"
HELD_OUT_OF = 8  # one name in eight is kept for evaluation


@dataclass(frozen=True, slots=True)
class Namer:
    """Draws invented names of one side of the split; the two sides share no word."""

    rng: Random
    held_out: bool = False

    def person(self) -> str:
        """Return a name of one or two words."""
        first = self._word(self._syllables)
        return first if self.rng.random() < 0.5 else f"{first} {self._word(self._syllables)}"

    def place(self) -> str:
        """Return the name of a town, a river or a ship."""
        return self._word(self._place)

    def persons(self, count: int) -> list[str]:
        """Return `count` names that share no word."""
        return self._distinct(count, self.person)

    def places(self, count: int) -> list[str]:
        """Return `count` different places."""
        return self._distinct(count, self.place)

    def _distinct(self, count: int, draw: Callable[[], str]) -> list[str]:
        names: list[str] = []
        used: set[str] = set()
        while len(names) < count:
            name = draw()
            if used.isdisjoint(name.split()):
                names.append(name)
                used.update(name.split())
        return names

    def _word(self, build: Callable[[], str]) -> str:
        while True:
            word = build().capitalize()
            if is_held_out(word) == self.held_out:
                return word

    def _syllables(self) -> str:
        parts = [
            self._pick(ONSETS.split()) + self._pick(VOWELS.split()) for _ in range(self.rng.choice((1, 2, 2, 2, 3)))
        ]
        tail = self._pick(CODAS.split()) if len(parts) == 1 or self.rng.random() < 0.6 else ""
        return "".join(parts) + tail

    def _place(self) -> str:
        stem = self._pick(ONSETS.split()) + self._pick(VOWELS.split()) + self._pick(CODAS.split())
        return stem + self._pick(PLACE_ENDINGS.split())

    def _pick(self, options: Sequence[str]) -> str:
        return self.rng.choice(options)


def is_held_out(word: str) -> bool:
    """Tell whether a word belongs to the side that training never sees; by checksum, so for ever the same."""
    return zlib.crc32(word.encode()) % HELD_OUT_OF == 0
