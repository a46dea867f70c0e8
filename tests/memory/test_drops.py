from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kea.memory.drops import Drop, Drops

NUM_POSITIONS = 30
positions = st.integers(0, NUM_POSITIONS)
spans = st.lists(st.tuples(positions, positions).filter(lambda span: span[0] < span[1]), max_size=8)


def dropped_at_once(hidden: list[tuple[int, int]]) -> Drops:
    drops = Drops()
    for start, stop in hidden:
        drops.add(Drop(start, stop, 0))
    drops.reach(0)
    drops.check(0)
    return drops


@given(hidden=spans, start=positions, stop=positions)
def test_spans_answer_as_a_set_of_positions_would(hidden: list[tuple[int, int]], start: int, stop: int) -> None:
    drops = dropped_at_once(hidden)
    members = {position for first, last in hidden for position in range(first, last)}
    assert {p for first, last in drops.spans for p in range(first, last)} == members
    visible = [p for first, last in drops.runs(stop) for p in range(first, last)]
    assert visible == [p for p in range(stop) if p not in members]
    assert drops.skip(start) == next(p for p in range(start, NUM_POSITIONS + 2) if p not in members)
    if start < stop:
        assert drops.hides(start, stop) == members.issuperset(range(start, stop))
    begins = [p for p in members if p > start and p - 1 not in members]
    assert drops.next_change(start) == min(begins, default=None)


@given(hidden=spans, length=positions)
def test_clipping_forgets_what_lies_behind(hidden: list[tuple[int, int]], length: int) -> None:
    drops = dropped_at_once(hidden)
    drops.clip(length, length)
    drops.check(length)
    members = {p for first, last in hidden for p in range(first, last) if p < length}
    assert {p for first, last in drops.spans for p in range(first, last)} == members
    assert bool(drops) == bool(members)


def test_drop_waits_for_its_moment_and_again_after_a_rewind() -> None:
    drops = Drops()
    drops.add(Drop(8, 12, 20))
    drops.add(Drop(2, 4, 6))
    assert drops.next_change(0) == 6
    assert drops.reach(5) == []
    assert drops.reach(6) == [(2, 4)]
    assert drops.spans == [(2, 4)]
    assert drops.next_change(6) == 20
    assert drops.reach(25) == [(8, 12)]
    drops.rewind()
    assert drops.spans == []
    assert drops.reach(25) == [(2, 4), (8, 12)]


def test_clean_positions_end_where_a_drop_can_first_be_felt() -> None:
    drops = Drops()
    assert not drops
    drops.add(Drop(4, 8, 10))  # felt from 10 on: what lies before was computed with all in sight
    assert drops.clean_len == 10
    drops.add(Drop(6, 7, 3))  # felt from 6 on: before it, nothing is missing
    assert drops.clean_len == 6
    drops.clip(6, 6)
    assert drops.clean_len == 6  # of the first drop: it now takes effect at 6
    drops.clip(4, 4)
    assert drops.clean_len is None


def test_copy_is_independent() -> None:
    drops = dropped_at_once([(1, 3)])
    twin = drops.copy()
    twin.add(Drop(5, 7, 0))
    twin.reach(0)
    assert drops.spans == [(1, 3)]
    assert twin.spans == [(1, 3), (5, 7)]
    drops.check(0)
