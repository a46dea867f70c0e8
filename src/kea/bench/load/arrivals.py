"""When requests arrive: offsets in seconds from the start of a load, ascending. Pure; randomness is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from random import Random

from kea.errors import InvalidRequest


def poisson_offsets(rate_per_s: float, count: int, rng: Random) -> tuple[float, ...]:
    """Return `count` arrivals of a Poisson process: independent exponential gaps of mean 1 / rate.

    The first request comes at 0, so that a run holds `count - 1` gaps and no empty start.
    """
    if not rate_per_s > 0:
        raise InvalidRequest(f"rate is {rate_per_s!r}; it must be above 0 requests per second.", param="rate")
    gaps = (rng.expovariate(rate_per_s) for _ in range(count - 1))
    return tuple(accumulate(gaps, initial=0.0))[:count]


def burst_offsets(count: int) -> tuple[float, ...]:
    """Return `count` arrivals at once: an infinite rate."""
    return (0.0,) * count


def scaled_offsets(offsets: Sequence[float], scale: float) -> tuple[float, ...]:
    """Return recorded arrivals from 0 with every gap multiplied by `scale`: below 1 they come faster."""
    if not scale > 0:
        raise InvalidRequest(f"trace-time-scale is {scale!r}; it must be above 0.", param="trace-time-scale")
    return tuple((offset - offsets[0]) * scale for offset in offsets)
