from __future__ import annotations

import pytest

from kea.memory.pages import PagePool, PageState


def take(pool: PagePool) -> int:
    page = pool.try_take()
    assert page is not None
    return page


def test_pool_gives_every_page_once_and_then_none() -> None:
    pool = PagePool(3)
    assert {pool.try_take() for _ in range(3)} == {0, 1, 2}
    assert pool.try_take() is None
    pool.check()
    assert pool.num_in(PageState.USED) == 3


def test_page_is_free_again_after_its_last_reference() -> None:
    pool = PagePool(1)
    page = take(pool)
    pool.share(page)
    assert not pool.is_private(page)
    pool.give_back(page)
    assert pool.state(page) is PageState.USED
    assert pool.is_private(page)
    pool.give_back(page)
    assert pool.state(page) is PageState.FREE
    pool.check()
    assert take(pool) == page


def test_page_in_the_tree_stays_cached_and_can_be_shared_again() -> None:
    pool = PagePool(1)
    page = take(pool)
    pool.enter_tree(page)
    assert not pool.is_private(page)
    pool.give_back(page)
    assert pool.state(page) is PageState.CACHED
    assert pool.try_take() is None
    pool.share(page)
    assert pool.state(page) is PageState.USED
    pool.give_back(page)
    assert pool.leave_tree(page)
    assert pool.state(page) is PageState.FREE
    pool.check()


def test_used_page_that_leaves_the_tree_becomes_private() -> None:
    pool = PagePool(1)
    page = take(pool)
    pool.enter_tree(page)
    assert not pool.leave_tree(page)
    assert pool.is_private(page)
    pool.check()


def test_wrong_moves_are_refused() -> None:
    pool = PagePool(2)
    page = take(pool)
    with pytest.raises(AssertionError, match="leaves the tree but is not in it"):
        pool.leave_tree(page)
    pool.enter_tree(page)
    with pytest.raises(AssertionError, match="enters the tree twice"):
        pool.enter_tree(page)
    with pytest.raises(AssertionError, match="given back once too often"):
        pool.give_back(1 - page)
    with pytest.raises(AssertionError, match="shared but holds nothing"):
        pool.share(1 - page)


def test_check_sees_a_lost_page() -> None:
    pool = PagePool(2)
    take(pool)
    pool._free.clear()
    with pytest.raises(AssertionError, match="free list"):
        pool.check()


def test_check_sees_a_wrong_state() -> None:
    pool = PagePool(2)
    pool._refs[take(pool)] = 0
    with pytest.raises(AssertionError, match="is USED, should be FREE"):
        pool.check()
