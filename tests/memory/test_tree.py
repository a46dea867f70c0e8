from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.memory.eviction import EvictionOrder
from kea.memory.nodes import Node
from kea.memory.pages import PagePool, PageState
from kea.memory.tree import PrefixTree

pages_of_tokens = st.lists(st.integers(0, 3), min_size=4, max_size=4).map(tuple)


def add_path(tree: PrefixTree, pool: PagePool, tokens: Sequence[int], salt: str = "") -> None:
    """Add a cached path of one-token pages, as a context would that computes it and is freed."""
    node = tree.pin_root(salt)
    taken = []
    for token in tokens:
        child = node.children.get((token,))
        if child is None:
            page = pool.try_take()
            assert page is not None
            taken.append(page)
            child = tree.insert(node, (token,), page)
            tree.unpin(node)
        else:
            tree.move_pin(node, child)
        node = child
    for page in taken:
        pool.give_back(page)
    tree.unpin(node)


def create_tree(num_pages: int = 64) -> tuple[PrefixTree, PagePool]:
    pool = PagePool(num_pages)
    return PrefixTree(pool, 1), pool


def path_of(node: Node) -> tuple[int, ...]:
    return tuple(node.ancestor(depth).tokens[0] for depth in range(1, node.depth + 1))


@given(children=st.sets(pages_of_tokens), tokens=st.lists(st.integers(0, 3), max_size=4).map(tuple))
def test_longest_match_is_as_good_as_a_scan(children: set[tuple[int, ...]], tokens: tuple[int, ...]) -> None:
    parent = Node("")
    for page, child_tokens in enumerate(sorted(children)):
        parent.attach(Node("", parent, child_tokens, page))
    parent.check_links()
    best = max((common_len(child, tokens) for child in children), default=0)
    child, length = parent.longest_match(tokens)
    assert length == best
    if child is None:
        assert best == 0
    else:
        assert common_len(child.tokens, tokens) == best


def common_len(first: Sequence[int], second: Sequence[int]) -> int:
    return next((idx for idx, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(second), 4))


def test_eviction_takes_the_least_recently_used_leaf_first() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1, 2, 3])
    add_path(tree, pool, [1, 5])
    add_path(tree, pool, [1, 2, 3])  # used again
    add_path(tree, pool, [7])
    gone = []
    before = {path_of(node) for node in tree.nodes()}
    while tree.try_evict():
        tree.check({})
        pool.check()
        after = {path_of(node) for node in tree.nodes()}
        gone += list(before - after)
        before = after
    assert gone == [(1, 5), (1, 2, 3), (1, 2), (1,), (7,)]
    assert pool.num_in(PageState.FREE) == 64


def test_eviction_takes_the_lower_rank_first() -> None:
    tree, pool = create_tree()
    for token in range(4):
        add_path(tree, pool, [token])
    assert tree.set_keep("", [0], 1) == 1
    assert tree.set_keep("", [1], 2) == 1
    assert tree.set_keep("", [2], -1) == 1
    assert tree.set_keep("", [9], 5) == 0
    assert tree.set_keep("unknown", [0], 5) == 0
    gone = []
    while tree.try_evict():
        tree.check({})
        gone.append({(0,), (1,), (2,), (3,)} - {path_of(node) for node in tree.nodes()})
    assert gone == [{(2,)}, {(2,), (3,)}, {(2,), (3,), (0,)}, {(2,), (3,), (0,), (1,)}]


def test_rank_holds_the_whole_path_that_it_was_set_on() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1, 2])
    add_path(tree, pool, [3])
    assert tree.set_keep("", [1, 2], 1) == 2
    assert tree.try_evict()
    assert {path_of(node) for node in tree.nodes()} == {(1,), (1, 2)}


def test_page_was_used_when_the_end_of_its_path_was() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1, 2])
    add_path(tree, pool, [7])
    end = next(node for node in tree.nodes() if node.depth == 2)
    tree.pin(end)  # a later hit on the whole path
    tree.unpin(end)
    tree.set_keep("", [1, 2], -1)
    tree.set_keep("", [1], 0)
    assert tree.try_evict()
    assert tree.try_evict()
    assert [path_of(node) for node in tree.nodes()] == [(1,)]


@pytest.mark.parametrize("seed", range(5))
def test_order_of_eviction_equals_a_scan_of_all_leaves(seed: int) -> None:
    random = Random(seed)
    tree, pool = create_tree(200)
    for _ in range(300):
        path = [random.randint(0, 2) for _ in range(random.randint(1, 6))]
        if pool.num_in(PageState.FREE) > 6:
            add_path(tree, pool, path, random.choice("ab"))
        if random.random() < 0.3:
            tree.set_keep(random.choice("ab"), path, random.randint(-1, 1))
        if random.random() < 0.5:
            leaves = [node for node in tree.nodes() if not node.children]
            expected = min(leaves, key=lambda node: (node.keep, node.last_used))
            assert tree.try_evict()
            assert pool.state(expected.page) is PageState.FREE
        tree.check({})
        pool.check()


def test_pinned_path_is_not_evicted() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1, 2, 3])
    root = tree.pin_root("")
    node = root.children[1,].children[2,]
    tree.move_pin(root, node)
    tree.clear()
    assert {path_of(left) for left in tree.nodes()} == {(1,), (1, 2)}
    tree.check(Counter([node]))
    tree.unpin(node)
    tree.clear()
    assert list(tree.nodes()) == []
    assert pool.num_in(PageState.FREE) == 64


def test_page_in_use_behind_an_unpinned_path_leaves_without_becoming_free() -> None:
    tree, pool = create_tree(2)
    add_path(tree, pool, [1, 2])
    held = next(node.page for node in tree.nodes() if node.depth == 2)
    pool.share(held)  # a context that dropped page 1 still uses page 2
    assert tree.try_evict()
    assert pool.is_private(held)
    assert pool.num_in(PageState.FREE) == 1
    assert not tree.try_evict()


def test_root_is_forgotten_when_nobody_needs_it() -> None:
    tree, pool = create_tree()
    root = tree.pin_root("tenant")
    tree.unpin(root)
    assert tree._roots == {}
    add_path(tree, pool, [1], "tenant")
    assert set(tree._roots) == {"tenant"}
    tree.clear()
    assert tree._roots == {}


def test_check_sees_a_pin_that_nobody_has() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1])
    node = next(tree.nodes())
    tree.pin(node)
    with pytest.raises(AssertionError, match="has 1 pins, not 0"):
        tree.check({})


def test_check_sees_a_node_filed_wrongly() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1, 2])
    next(node for node in tree.nodes() if node.depth == 2).parent = Node("")
    with pytest.raises(AssertionError, match="has another parent"):
        tree.check({})


def test_check_sees_a_leaf_that_could_never_be_evicted() -> None:
    tree, pool = create_tree()
    add_path(tree, pool, [1])
    tree._order.discard(next(tree.nodes()))
    with pytest.raises(AssertionError, match="missing in the order of eviction"):
        tree.check({})


def test_order_of_eviction_does_not_grow_with_use() -> None:
    order = EvictionOrder()
    parent = Node("")
    nodes = [Node("", parent, (token,), token) for token in range(10)]
    for turn in range(1000):
        node = nodes[turn % 10]
        order.discard(node)
        node.last_used = turn
        order.add(node)
        order.check()
    assert len(order) == 10
    assert len(order._heap) < 150
    popped = [order.try_pop() for _ in range(11)]
    assert popped == [*nodes, None]
