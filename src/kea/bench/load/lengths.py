"""How long prompts and answers are: fixed, uniform or lognormal, in tokens.

Owns the spelling of these laws on the command line. Randomness is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Protocol

from kea.bench.integers import parse_integer
from kea.errors import InvalidRequest

_ALLOWED = "512, 32k, uniform:128:1k (both ends included) or lognormal:512:0.8 (median and sigma of the logarithm)"


class LengthLaw(Protocol):
    """Draws lengths in tokens, at least 1. Its string is what `parse_lengths` reads."""

    def draw(self, rng: Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    length: int

    def draw(self, rng: Random) -> int:
        return self.length

    def __str__(self) -> str:
        return str(self.length)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from `low` to `high`, both included, equally often."""

    low: int
    high: int

    def draw(self, rng: Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return f"uniform:{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lengths whose logarithm is normal: many short, few long. `sigma` is the spread of the natural logarithm."""

    median: int
    sigma: float

    def draw(self, rng: Random) -> int:
        return max(1, round(rng.lognormvariate(math.log(self.median), self.sigma)))

    def __str__(self) -> str:
        return f"lognormal:{self.median}:{self.sigma:g}"


def parse_lengths(text: str, param: str) -> LengthLaw:
    """Read a law of lengths such as 512, uniform:128:1k or lognormal:512:0.8; `param` names it in an error."""
    kind, *parts = text.split(":")
    if not parts:
        return Fixed(_at_least_one(kind, param))
    if kind == "uniform" and len(parts) == 2:
        low, high = (_at_least_one(part, param) for part in parts)
        if low > high:
            raise InvalidRequest(f"{param} is {text!r}, whose low end is above its high end.", param=param)
        return Uniform(low, high)
    if kind == "lognormal" and len(parts) == 2:
        return Lognormal(_at_least_one(parts[0], param), _sigma(parts[1], text, param))
    raise InvalidRequest(f"{param} is {text!r}; it must be {_ALLOWED}.", param=param)


def _at_least_one(text: str, param: str) -> int:
    length = parse_integer(text, param)
    if length < 1:
        raise InvalidRequest(f"{param} holds the length {length}; lengths are at least 1.", param=param)
    return length


def _sigma(part: str, text: str, param: str) -> float:
    try:
        sigma = float(part)
    except ValueError:
        sigma = math.nan
    if not 0 <= sigma <= 5:
        raise InvalidRequest(f"{param} is {text!r}; the sigma of a lognormal law is between 0 and 5.", param=param)
    return sigma
