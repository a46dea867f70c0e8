"""Prefix hits, claims, reservation and eviction of the KV memory, one operation at a time."""

from __future__ import annotations

import pytest

from kea.memory import NO_PAGE, MatchResult, PageCopy
from tests.memory.steps import cache, compute, create_memory, open_computed

TOKENS = list(range(100, 164))


@pytest.mark.parametrize("page_tokens", [1, 2, 4, 16])
@pytest.mark.parametrize("limit", [1, 7, 16, 31, 32, 33])
def test_hit_ends_at_any_token(page_tokens: int, limit: int) -> None:
    memory = create_memory(128, page_tokens)
    cache(memory, TOKENS[:48])
    ctx = memory.open()
    result = memory.match(ctx, TOKENS, limit)
    memory.check()
    assert result.num_tokens == ctx.num_computed == limit
    assert len(result.copies) == (limit % page_tokens > 0)
    assert sum(copy.num_tokens for copy in result.copies) == limit % page_tokens
    snapshot = memory.snapshot()
    assert (snapshot.queried_tokens, snapshot.hit_tokens) == (limit, limit)


def test_hit_ends_where_the_tokens_part() -> None:
    memory = create_memory()
    first = open_computed(memory, [1, 2, 3, 4, 5, 6, 7, 8])
    ctx = memory.open()
    result = memory.match(ctx, [1, 2, 3, 4, 5, 6, 9, 9, 9], 8)
    assert result == MatchResult(6, (PageCopy(first.pages[1], ctx.pages[1], 2),))
    assert ctx.pages[0] == first.pages[0]
    assert ctx.pages[1] != first.pages[1]


def test_salts_share_nothing() -> None:
    memory = create_memory()
    cache(memory, TOKENS[:8], "tenant one")
    assert memory.match(memory.open("tenant two"), TOKENS, 8) == MatchResult(0)
    assert memory.match(memory.open("tenant one"), TOKENS, 8).num_tokens == 8
    memory.check()


def test_hit_is_shortened_when_no_page_can_be_had_for_the_copy() -> None:
    memory = create_memory(num_pages=2)
    holder = open_computed(memory, TOKENS[:8])
    ctx = memory.open()
    assert memory.match(ctx, TOKENS, 7) == MatchResult(4)
    assert ctx.pages == holder.pages[:1]
    memory.check()


def test_copy_never_evicts_its_own_source() -> None:
    memory = create_memory(num_pages=2)
    cache(memory, TOKENS[:8])  # both pages cached, none free
    ctx = memory.open()
    assert memory.match(ctx, TOKENS, 7) == MatchResult(4)
    assert memory.snapshot().num_cached == 1
    memory.check()


def test_match_goes_on_with_what_another_context_computed_meanwhile() -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    compute(memory, first, TOKENS, 4)
    assert memory.match(second, TOKENS, 20).num_tokens == 4
    assert memory.match(second, TOKENS, 20).num_tokens == 0
    compute(memory, first, TOKENS, 12)
    assert memory.match(second, TOKENS, 20).num_tokens == 8
    assert second.pages == first.pages
    snapshot = memory.snapshot()
    assert (snapshot.queried_tokens, snapshot.hit_tokens) == (20, 12)


def test_match_in_the_middle_of_a_page_replaces_the_own_page() -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    compute(memory, second, TOKENS, 2)
    compute(memory, first, TOKENS, 6)
    assert memory.match(second, TOKENS, 20) == MatchResult(2)
    assert second.pages == first.pages[:1]
    assert memory.snapshot().num_free == 14
    compute(memory, first, TOKENS, 8)
    own = memory.try_reserve(second, 8) and second.pages[1]
    result = memory.match(second, TOKENS, 7)
    assert result == MatchResult(3, (PageCopy(first.pages[1], own, 3),))
    memory.check()


def test_same_content_is_held_once() -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    for ctx in (first, second):  # both reserved before either committed: the same step
        assert memory.try_reserve(ctx, 9)
    memory.commit(first, TOKENS, 9)
    memory.commit(second, TOKENS, 9)
    memory.check()
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert memory.snapshot().num_used == 4


def test_claim_makes_the_second_context_wait() -> None:
    memory = create_memory()
    first, second, other = memory.open(), memory.open(), memory.open("other")
    assert not memory.claim(first, TOKENS)
    assert not memory.claim(first, TOKENS), "a context does not wait for itself"
    assert memory.claim(second, TOKENS)
    assert not memory.claim(other, TOKENS)
    assert not memory.claim(memory.open(), [*TOKENS[:3], 9, 9])
    memory.check()
    compute(memory, first, TOKENS, 8)
    assert not memory.claim(second, TOKENS), "the claim ended with the commit"
    assert memory.match(second, TOKENS, 20).num_tokens == 8
    assert not memory.claim(second, TOKENS)
    assert memory.claim(first, TOKENS)
    memory.check()


def test_page_that_the_tokens_do_not_fill_is_not_claimed() -> None:
    memory = create_memory()
    assert not memory.claim(memory.open(), TOKENS[:3])
    assert not memory.claim(memory.open(), TOKENS[:3])


def test_context_has_one_claim() -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    assert not memory.claim(first, TOKENS)
    assert not memory.claim(first, TOKENS[1:])
    memory.check()
    assert not memory.claim(second, TOKENS)
    memory.check()


def test_nobody_waits_for_his_last_page() -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    assert not memory.claim(first, TOKENS[:4])
    assert not memory.claim(second, TOKENS[:4]), "its last token is computed in any case, to draw from"
    assert memory.claim(second, TOKENS[:5])


@pytest.mark.parametrize("ending", ["release", "free", "truncate", "drop", "reserve", "step"])
def test_claim_ends_with_whatever_stops_its_owner(ending: str) -> None:
    memory = create_memory()
    first, second = memory.open(), memory.open()
    assert not memory.claim(first, TOKENS)
    if ending == "release":
        memory.release(first)
    elif ending == "free":
        memory.free(first)
    elif ending == "truncate":
        memory.truncate(first, 0)
    elif ending == "drop":
        memory.drop(first, 1, 2)
    elif ending == "step":
        memory.begin_step()
    else:
        assert not memory.try_reserve(first, 1000)
    assert not memory.claim(second, TOKENS)
    memory.check()


def test_reserve_is_all_or_nothing_and_evicts() -> None:
    memory = create_memory(num_pages=4)
    cache(memory, TOKENS[:8])
    ctx = memory.open()
    assert not memory.try_reserve(ctx, 17)
    assert ctx.pages == []
    assert memory.snapshot().num_cached == 2
    assert memory.try_reserve(ctx, 13)
    snapshot = memory.snapshot()
    assert (snapshot.num_used, snapshot.num_evicted) == (4, 2)
    assert memory.try_reserve(ctx, 16)
    assert memory.num_available == 0
    memory.check()


def test_eviction_spares_what_a_known_future_call_will_use() -> None:
    memory = create_memory(num_pages=4)
    cache(memory, [1] * 8)
    cache(memory, [2] * 8)
    assert memory.set_keep("", [1] * 8, 1) == 2
    assert memory.try_reserve(memory.open(), 8)
    assert memory.match(memory.open(), [1] * 9, 8).num_tokens == 8
    assert memory.match(memory.open(), [2] * 9, 8).num_tokens == 0


def test_cleared_cache_keeps_what_is_used() -> None:
    memory = create_memory()
    cache(memory, [9] * 12)
    ctx = open_computed(memory, TOKENS[:8])
    memory.clear_cache()
    memory.check()
    assert (memory.snapshot().num_cached, memory.snapshot().num_used) == (0, 2)
    assert memory.match(memory.open(), TOKENS, 8).num_tokens == 8
    assert ctx.pages != [NO_PAGE] * 2


def test_closed_context_is_refused() -> None:
    memory = create_memory()
    ctx = memory.open()
    memory.free(ctx)
    with pytest.raises(AssertionError, match="closed context"):
        memory.match(ctx, TOKENS, 8)
    with pytest.raises(AssertionError, match="closed context"):
        memory.free(ctx)


def test_commit_refuses_what_cannot_be() -> None:
    memory = create_memory()
    ctx = memory.open()
    with pytest.raises(AssertionError, match="no page"):
        memory.commit(ctx, TOKENS, 1)
    compute(memory, ctx, TOKENS, 6)
    with pytest.raises(AssertionError, match="goes back"):
        memory.commit(ctx, TOKENS, 5)
    memory.drop(ctx, 7, 8)
    assert memory.try_reserve(ctx, 9)
    with pytest.raises(AssertionError, match="past a drop"):
        memory.commit(ctx, TOKENS, 9)


def test_check_names_a_lost_reference() -> None:
    memory = create_memory()
    ctx = open_computed(memory, TOKENS[:6])
    ctx.pages.pop()
    with pytest.raises(AssertionError, match="counts 1 references, 0 tables hold it"):
        memory.check()
