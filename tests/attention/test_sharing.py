"""Segments of a step: every query sees what its runs say, once, in its own pages; what pays is shared."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from kea.attention.base import Run, SequencePlan
from kea.attention.sharing import Segments, SharingCosts, SharingPlanner
from tests.attention.plans import covered_pages, dense_mask, random_runs

PAGE = 4
FREE = SharingCosts(segment=0.0, row=0.0, product=0.0)
CPU_LIKE = SharingCosts(segment=20.0, row=2.0, product=0.05)


def plan(*sequences: SequencePlan, costs: SharingCosts = FREE, window: int | None = None) -> Segments:
    return SharingPlanner().tree(sequences, PAGE).segments(window, costs)


def decode(row: int, table: Sequence[int], num_tokens: int) -> SequencePlan:
    return SequencePlan(row, 1, num_tokens - 1, tuple(table), (Run(0, num_tokens),))


def parts(segments: Segments) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return each segment's pages and rows."""
    found = set()
    for n in range(len(segments)):
        pages = segments.pages[segments.page_bounds[n] : segments.page_bounds[n + 1]]
        rows = segments.rows[segments.row_bounds[n] : segments.row_bounds[n + 1]]
        found.add((tuple(pages.tolist()), tuple(sorted(rows.tolist()))))
    return found


def seen_slots(segments: Segments, page_tokens: int) -> dict[int, list[tuple[int, int]]]:
    """Return (position, slot) of all that each row sees, with what is seen twice twice."""
    seen: dict[int, list[tuple[int, int]]] = {}
    for n in range(len(segments)):
        pages = segments.pages[segments.page_bounds[n] : segments.page_bounds[n + 1]].tolist()
        base = int(segments.bases[n])
        assert base <= segments.starts[n] < segments.stops[n] <= base + len(pages) * page_tokens
        for e in range(segments.row_bounds[n], segments.row_bounds[n + 1]):
            low, high = int(segments.lows[e]), int(segments.highs[e])
            assert segments.starts[n] <= low < high <= segments.stops[n]
            seen.setdefault(int(segments.rows[e]), []).extend(
                (j, pages[(j - base) // page_tokens] * page_tokens + j % page_tokens) for j in range(low, high)
            )
    return seen


def visible_slots(
    sequences: Sequence[SequencePlan], page_tokens: int, window: int | None
) -> dict[int, list[tuple[int, int]]]:
    visible = {}
    for sequence in sequences:
        mask = dense_mask(sequence, window)
        for i in range(sequence.num_queries):
            positions = mask[i].nonzero().flatten().tolist()
            slots = [sequence.page_table[j // page_tokens] * page_tokens + j % page_tokens for j in positions]
            if slots:
                visible[sequence.row_start + i] = list(zip(positions, slots, strict=True))
    return visible


def random_family(rng: random.Random, page_tokens: int) -> list[SequencePlan]:
    """Contexts that come from one another by forking at a page and growing, some with runs of their own."""
    fresh = iter(rng.sample(range(5000), 5000))
    tables: list[list[int]] = []
    sequences: list[SequencePlan] = []
    row = 0
    for _ in range(rng.randint(1, 9)):
        parent = rng.choice([*tables, []])
        table = parent[: rng.randint(0, len(parent))] + [next(fresh) for _ in range(rng.randint(1, 9))]
        tables.append(table)
        end = len(table) * page_tokens - rng.randint(0, page_tokens - 1)
        num_queries = min(end, rng.choice([1, 1, 1, 2, 7]))
        position = end - num_queries
        runs = random_runs(rng, position, end) if rng.random() < 0.4 else (Run(0, end),)
        kept = covered_pages(runs, page_tokens) | set(range(position // page_tokens, len(table)))
        holed = tuple(page if i in kept else -1 for i, page in enumerate(table))
        sequences.append(SequencePlan(row, num_queries, position, holed, runs))
        row += num_queries
    rng.shuffle(sequences)
    return sequences


@pytest.mark.parametrize("costs", [FREE, CPU_LIKE])
@pytest.mark.parametrize("seed", range(80))
def test_every_query_sees_what_its_runs_say_once_and_in_its_own_pages(seed: int, costs: SharingCosts) -> None:
    rng = random.Random(seed)
    page_tokens = rng.choice([1, 4, 16])
    sequences = random_family(rng, page_tokens)
    tree = SharingPlanner().tree(sequences, page_tokens)
    for window in (None, 1, 9, 50):
        seen = seen_slots(tree.segments(window, costs), page_tokens)
        assert {row: sorted(slots) for row, slots in seen.items()} == visible_slots(sequences, page_tokens, window)


def test_a_tree_of_prefixes_is_read_once_per_node_with_strangers_beside_it() -> None:
    segments = plan(
        decode(0, [1, 2, 3, 10], 14),
        decode(1, [7, 8], 8),
        decode(2, [1, 2, 3, 4, 5, 11], 22),
        decode(3, [1, 2, 3, 4, 5, 12, 13], 27),
    )
    assert parts(segments) == {
        ((1, 2, 3), (0, 2, 3)),
        ((4, 5), (2, 3)),
        ((10,), (0,)),
        ((11,), (2,)),
        ((12, 13), (3,)),
        ((7, 8), (1,)),
    }


def test_what_does_not_pay_is_left_to_the_children() -> None:
    sequences = (decode(0, [1, 2, 10], 12), decode(1, [1, 2, 11], 12), decode(2, [1, 2, 12], 12))
    saved = 2 * 2 * PAGE  # two pages, read by two rows fewer
    pays = plan(*sequences, costs=SharingCosts(segment=saved - 4, row=1.0, product=0.5))
    does_not = plan(*sequences, costs=SharingCosts(segment=saved - 3, row=1.0, product=0.5))
    assert parts(pays) == {((1, 2), (0, 1, 2)), ((10,), (0,)), ((11,), (1,)), ((12,), (2,))}
    assert parts(does_not) == {((1, 2, 10), (0,)), ((1, 2, 11), (1,)), ((1, 2, 12), (2,))}


def test_a_short_node_joins_its_long_child_where_only_that_pays() -> None:
    long = list(range(20, 40))
    segments = plan(
        decode(0, [1, 90], 8),
        decode(1, [1, *long, 91], 88),
        decode(2, [1, *long, 92], 88),
        costs=SharingCosts(segment=10.0, row=1.0, product=0.0),
    )
    assert parts(segments) == {((1, 90), (0,)), ((1, *long), (1, 2)), ((91,), (1,)), ((92,), (2,))}


def test_a_window_that_does_not_reach_the_prefix_leaves_nothing_to_share() -> None:
    sequences = (decode(0, [1, 2, 10], 12), decode(1, [1, 2, 11, 12], 16))
    assert parts(plan(*sequences, window=4)) == {((10,), (0,)), ((12,), (1,))}
    assert parts(plan(*sequences, window=6)) == {((2, 10), (0,)), ((11, 12), (1,))}


def test_a_span_dropped_by_one_context_only_is_still_shared_by_the_others() -> None:
    whole = [decode(row, [1, 2, 3, 10 + row], 15) for row in range(2)]
    holed = decode(2, [1, 2, 3, 12], 15)._replace(runs=(Run(0, 5), Run(9, 15)))
    segments = plan(*whole, holed)
    assert {(int(lo), int(hi)) for lo, hi in zip(segments.starts, segments.stops, strict=True)} == {
        (0, 5),
        (5, 9),
        (9, 12),
        (12, 15),
    }
    assert ((2, 3), (0, 1)) in parts(segments)


def test_no_context_and_a_context_that_sees_nothing_give_no_segments() -> None:
    assert len(plan()) == 0
    blind = SequencePlan(0, 1, 3, (5,), (Run(3, 4, left=0),))
    assert len(plan(blind._replace(runs=(Run(6, 7),)))) == 0


def test_contexts_that_only_grow_are_not_sorted_again() -> None:
    planner = SharingPlanner()
    tables = [[1, 2, 10], [1, 2, 11], [3]]
    lengths = [12, 9, 2]
    fresh = iter(range(100, 200))
    for _ in range(20):
        sequences = [decode(i, table, n) for i, (table, n) in enumerate(zip(tables, lengths, strict=True))]
        again = planner.tree(sequences, PAGE).segments(None, FREE)
        assert parts(again) == parts(plan(*sequences))
        lengths = [n + 1 for n in lengths]
        for table, n in zip(tables, lengths, strict=True):
            if n > len(table) * PAGE:
                table.append(next(fresh))
    assert planner.num_sorted == 1


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param([[1, 2, 10], [1, 2, 10, 11], [3]], id="grows by another's page"),
        pytest.param([[1, 2, 10], [1, 9], [3]], id="a page is replaced"),
        pytest.param([[1, 2, 10], [1], [3]], id="cut"),
        pytest.param([[1, 2, 10], [1, 2], [3], [4]], id="one more"),
    ],
)
def test_contexts_that_change_otherwise_are_sorted_again(tables: list[list[int]]) -> None:
    planner = SharingPlanner()
    planner.tree([decode(i, table, PAGE * len(table)) for i, table in enumerate([[1, 2, 10], [1, 2], [3]])], PAGE)
    sequences = [decode(i, table, PAGE * len(table)) for i, table in enumerate(tables)]
    assert parts(planner.tree(sequences, PAGE).segments(None, FREE)) == parts(plan(*sequences))
    assert planner.num_sorted == 2
