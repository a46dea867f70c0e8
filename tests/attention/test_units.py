"""Units of work: they cover what every row sees exactly once, are of similar cost, and say what is to be merged."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kea.attention import numba_units
from kea.attention.base import Run, SequencePlan
from kea.attention.numba_units import MAX_LANES, Units, plan_units
from kea.attention.sharing import Segments, SharingCosts, SharingPlanner
from tests.attention.test_sharing import random_family

COSTS = SharingCosts(segment=20.0, row=2.0, product=0.1)
NUM_KV = 3


def segments_of(sequences: list[SequencePlan], page_tokens: int, window: int | None = None) -> Segments:
    return SharingPlanner().tree(sequences, page_tokens).segments(window, COSTS)


def check_units(segments: Segments, units: Units, group: int) -> None:
    """Every (row, KV head, position) that is seen is in one unit, and its partial results are merged once."""
    found: list[tuple[int, int, int]] = []
    places: dict[int, set[int]] = {}
    whole: dict[int, int] = {}
    for first, last, _, base, start, stop, head, head_end, place, _ in units.units.tolist():
        assert (last - first) * group <= max(MAX_LANES, group)
        assert base <= start < stop
        for e in range(first, last):
            row, low, high = (int(field[e]) for field in (segments.rows, segments.lows, segments.highs))
            seen = range(max(start, low), min(stop, high))
            found += [(row, h, position) for h in range(head, head_end) for position in seen]
            if place < 0:
                whole[row] = whole.get(row, 0) + head_end - head
            else:
                places.setdefault(row, set()).add(place + e - first)
    entries = zip(segments.rows.tolist(), segments.lows.tolist(), segments.highs.tolist(), strict=True)
    assert sorted(found) == sorted((row, h, p) for row, lo, hi in entries for h in range(NUM_KV) for p in range(lo, hi))
    merged = {
        int(row): units.places[units.bounds[i] : units.bounds[i + 1]].tolist() for i, row in enumerate(units.merged)
    }
    assert {row: sorted(found) for row, found in places.items()} == {row: sorted(p) for row, p in merged.items()}
    assert sorted(place for found in merged.values() for place in found) == list(range(units.num_spare))
    assert whole == dict.fromkeys(set(segments.rows.tolist()) - set(merged), NUM_KV)


@pytest.mark.parametrize("seed", range(40))
def test_units_cover_what_is_seen_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    page_tokens = rng.choice([1, 4, 16])
    monkeypatch.setattr(numba_units, "MIN_TOKENS", rng.choice([8, 64]))
    group = rng.choice([1, 3, 8, 120])
    segments = segments_of(random_family(rng, page_tokens), page_tokens, rng.choice([None, 9, 50]))
    check_units(segments, plan_units(segments, NUM_KV, group, rng.choice([1, 2, 16])), group)


def test_a_long_context_keeps_all_threads_busy_and_a_long_prompt_costs_a_triangle() -> None:
    long = SequencePlan(0, 1, 4095, tuple(range(256)), (Run(0, 4096),))
    segments = segments_of([long], 16)
    units = plan_units(segments, NUM_KV, 3, 4).units
    lengths = units[:, 5] - units[:, 4]
    assert len(units) >= 4 * numba_units.UNITS_PER_THREAD
    assert lengths.max() <= 1.3 * lengths.mean()
    prompt = SequencePlan(0, 1024, 0, tuple(range(64)), (Run(0, 1024),))
    units = plan_units(segments_of([prompt], 16), NUM_KV, 3, 2).units
    pairs = ((units[:, 1] - units[:, 0]) * (units[:, 5] - units[:, 4])).sum()
    assert pairs < 1.1 * NUM_KV * 1024 * 1024 / 2
    costs = (units[:, 1] - units[:, 0]) * (units[:, 5] - units[:, 4])
    assert np.all(np.diff(costs) <= 0)


def test_rows_that_see_nothing_are_in_no_unit() -> None:
    blind = SequencePlan(0, 1, 3, (5,), (Run(6, 7),))
    units = plan_units(segments_of([blind], 4), NUM_KV, 3, 2)
    assert len(units.units) == len(units.merged) == len(units.rows) == units.num_spare == 0


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_unit_names_the_one_that_its_thread_takes_next(num_threads: int) -> None:
    tables = [tuple(range(9 * i, 9 * i + 9)) for i in range(7)]
    sequences = [SequencePlan(i, 1, 130, table, (Run(0, 131),)) for i, table in enumerate(tables)]
    units = plan_units(segments_of(sequences, 16), NUM_KV, 3, num_threads).units
    taken: set[int] = set()
    for first in range(num_threads):
        unit = first
        while unit >= 0:
            taken.add(unit)
            unit = int(units[unit, -1])
    assert taken == set(range(len(units)))
    assert (units[-num_threads:, -1] == -1).all()
