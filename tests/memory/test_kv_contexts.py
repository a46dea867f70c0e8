"""Fork, truncate, drop, release and free of the KV memory, one operation at a time."""

from __future__ import annotations

import pytest

from kea.memory import NO_PAGE, PageCopy
from tests.memory.steps import compute, create_memory, open_computed

TOKENS = list(range(100, 164))


@pytest.mark.parametrize("page_tokens", [1, 2, 4, 16])
@pytest.mark.parametrize("at", [0, 1, 5, 8, 16, 19, 20])
def test_fork_is_exact_at_any_token(page_tokens: int, at: int) -> None:
    memory = create_memory(64, page_tokens)
    parent = open_computed(memory, TOKENS[:20])
    child, copies = memory.fork(parent, at)
    memory.check()
    num_full, num_tokens = divmod(at, page_tokens)
    assert child.num_computed == at
    assert child.pages[:num_full] == parent.pages[:num_full]
    if num_tokens:
        assert copies == (PageCopy(parent.pages[num_full], child.pages[num_full], num_tokens),)
        assert child.pages[num_full] not in parent.pages
    else:
        assert copies == ()


def test_fork_beyond_what_is_computed_takes_what_is_computed() -> None:
    memory = create_memory()
    parent = open_computed(memory, TOKENS[:6])
    child, copies = memory.fork(parent, 9)
    assert child.num_computed == 6
    assert copies[0].num_tokens == 2


def test_fork_without_a_page_for_the_tail_ends_at_the_page_before() -> None:
    memory = create_memory(num_pages=2)
    parent = open_computed(memory, TOKENS[:6])
    child, copies = memory.fork(parent, 6)
    assert (child.num_computed, copies, child.pages) == (4, (), parent.pages[:1])
    memory.check()


def test_fork_outlives_its_parent() -> None:
    memory = create_memory()
    parent = open_computed(memory, TOKENS[:8])
    child, _ = memory.fork(parent, 8)
    memory.free(parent)
    memory.clear_cache()
    memory.check()
    assert memory.snapshot().num_used == 2
    memory.free(child)
    assert memory.snapshot().num_cached == 2


def test_truncate_of_a_private_tail_needs_no_copy() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:7])
    pages = list(ctx.pages)
    assert memory.truncate(ctx, 5) == ()
    assert (ctx.num_computed, ctx.pages) == (5, pages)
    memory.check()


def test_truncate_into_a_page_of_the_tree_copies_it() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:12])
    old = list(ctx.pages)
    copies = memory.truncate(ctx, 6)
    assert copies == (PageCopy(old[1], ctx.pages[1], 2),)
    assert ctx.pages[0] == old[0]
    memory.check()
    compute(memory, ctx, [*TOKENS[:6], 1, 1, 1], 9)
    assert memory.match(memory.open(), TOKENS, 12).num_tokens == 12, "the old pages stay cached"
    memory.check()


def test_truncate_at_a_page_boundary_and_beyond_the_computed() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:12])
    assert memory.truncate(ctx, 8) == ()
    assert memory.truncate(ctx, 11) == ()
    assert (ctx.num_computed, len(ctx.pages)) == (8, 2)
    assert memory.try_reserve(ctx, 20)
    assert memory.truncate(ctx, 9) == ()
    assert len(ctx.pages) == 3, "reserved pages behind the length are given back"
    memory.check()


def test_truncate_takes_its_last_page_out_of_the_tree_when_no_other_can_be_had() -> None:
    memory = create_memory(num_pages=2)
    ctx = open_computed(memory, TOKENS[:8])
    pages = list(ctx.pages)
    assert memory.truncate(ctx, 6) == ()
    assert (ctx.num_computed, ctx.pages) == (6, pages)
    memory.check()
    compute(memory, ctx, [*TOKENS[:6], 1, 1])
    assert memory.match(memory.open(), TOKENS, 8).num_tokens == 4


def test_truncate_without_a_page_for_a_shared_tail_ends_at_the_page_before() -> None:
    memory = create_memory(num_pages=2)
    ctx = open_computed(memory, TOKENS[:8])
    other, _ = memory.fork(ctx, 8)
    assert memory.truncate(ctx, 6) == ()
    assert (ctx.num_computed, ctx.pages) == (4, other.pages[:1])
    memory.check()


def test_drop_gives_back_whole_pages_and_keeps_positions() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:14])
    memory.drop(ctx, 3, 9)
    memory.check()
    assert ctx.pages[1] == NO_PAGE
    assert ctx.pages.count(NO_PAGE) == 1
    assert ctx.num_computed == 14
    assert list(ctx.dropped) == [(3, 9)]
    assert memory.visible_runs(ctx, 14) == ((0, 3), (9, 14))
    memory.drop(ctx, 9, 10)
    memory.drop(ctx, 12, 13)
    memory.drop(ctx, 2, 2)
    assert list(ctx.dropped) == [(3, 10), (12, 13)]
    assert memory.visible_runs(ctx, 12) == ((0, 3), (10, 12))
    memory.check()


def test_drops_that_together_cover_a_page_give_it_back() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:12])
    memory.drop(ctx, 4, 6)
    assert NO_PAGE not in ctx.pages
    memory.drop(ctx, 6, 8)
    assert ctx.pages[1] == NO_PAGE
    memory.check()


def test_dropped_pages_can_be_had_although_later_ones_are_in_use() -> None:
    memory = create_memory(num_pages=5)
    ctx = open_computed(memory, TOKENS[:20])
    memory.drop(ctx, 4, 16)
    assert (memory.snapshot().num_cached, memory.num_available) == (3, 3)
    assert memory.try_reserve(memory.open(), 12)
    memory.check()
    assert memory.visible_runs(ctx, 20) == ((0, 4), (16, 20))


def test_nothing_behind_a_drop_enters_the_tree() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:6])
    memory.drop(ctx, 1, 2)
    assert ctx.is_tainted
    compute(memory, ctx, TOKENS[:16])
    memory.free(ctx)
    memory.check()
    assert memory.snapshot().num_cached == 1, "only the page that was full before the drop"


def test_truncation_before_a_drop_makes_the_context_clean_again() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:10])
    memory.drop(ctx, 6, 8)
    memory.truncate(ctx, 6)
    assert not ctx.is_tainted
    compute(memory, ctx, TOKENS[:12])
    assert memory.snapshot().num_used == 3
    assert memory.match(memory.open(), TOKENS, 12).num_tokens == 12
    memory.check()


def test_tokens_dropped_before_they_are_computed_are_passed_over() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:3])
    memory.drop(ctx, 5, 13)
    assert memory.chunk_stop(ctx, 16) == 5
    assert memory.try_reserve(ctx, 5)
    memory.commit(ctx, TOKENS, 5)
    assert ctx.num_computed == 13
    assert memory.try_reserve(ctx, 15)
    assert [page == NO_PAGE for page in ctx.pages] == [False, False, True, False]
    assert memory.chunk_stop(ctx, 16) == 16
    memory.check()


def test_fork_inherits_the_drops_below_it() -> None:
    memory = create_memory()
    parent = open_computed(memory, TOKENS[:16])
    memory.drop(parent, 2, 9)
    memory.drop(parent, 12, 14)
    child, _ = memory.fork(parent, 13)
    assert child.dropped == ((2, 9), (12, 13))
    assert child.num_computed == 13
    clean, _ = memory.fork(parent, 2)
    assert not clean.is_tainted
    memory.check()


def test_release_keeps_full_pages_cached_and_the_rest_free() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:10])
    memory.release(ctx)
    memory.check()
    snapshot = memory.snapshot()
    assert (snapshot.num_used, snapshot.num_cached, snapshot.num_free) == (0, 2, 14)
    assert (ctx.num_computed, ctx.pages) == (0, [])
    assert memory.match(ctx, TOKENS[:10], 9).num_tokens == 8


def test_drops_take_effect_again_where_they_did_before_a_release() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:10])
    memory.drop(ctx, 2, 9)
    compute(memory, ctx, TOKENS[:14])
    memory.release(ctx)
    assert memory.visible_runs(ctx, 10) == ((0, 10),), "nothing is hidden from what was computed before the drop"
    assert memory.match(ctx, TOKENS, 14).num_tokens == 8, "what was full before the drop"
    assert memory.chunk_stop(ctx, 14) == 10
    memory.drop(ctx, 9, 11)  # issued during the replay: it waits for its end
    assert list(ctx.dropped) == []
    compute(memory, ctx, TOKENS[:14], 10)
    assert list(ctx.dropped) == [(2, 9)]
    assert memory.chunk_stop(ctx, 20) == 14
    compute(memory, ctx, TOKENS[:14], 14)
    assert list(ctx.dropped) == [(2, 11)]
    memory.check()


def test_everything_comes_back() -> None:
    memory = create_memory()
    parent = open_computed(memory, TOKENS[:15])
    child, _ = memory.fork(parent, 13)
    memory.drop(child, 1, 9)
    grandchild, _ = memory.fork(child, 10)
    for ctx in (parent, grandchild, child):
        memory.free(ctx)
        memory.check()
    memory.clear_cache()
    assert memory.snapshot().num_free == 16
