from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.errors import Conflict, TemplateError
from kea.program.graph import Node, ProgramGraph
from kea.program.order import TopologicalOrder


def node(name: str, reads: str = "", writes: str = "") -> Node:
    return Node(name, name, tuple(reads.split()), tuple(writes.split()))


def assert_in_order(graph: ProgramGraph, nodes: list[Node]) -> None:
    position = {call_id: idx for idx, call_id in enumerate(graph.in_order())}
    assert set(position) == {item.id for item in nodes}
    for item in nodes:
        for producer in graph.predecessors(item.id):
            assert position[producer] < position[item.id]


def test_producers_and_consumers() -> None:
    graph = ProgramGraph()
    graph.add([], ["x"])
    graph.add([node("a", "x", "y z"), node("b", "y", "w"), node("c", "y z", "u")])
    assert graph.producer_of("x") is None
    assert graph.producer_of("z") == "a"
    assert graph.consumers_of("y") == ("b", "c")
    assert graph.consumers_of("u") == ()
    assert len(graph) == 3


def test_a_batch_may_come_in_any_order() -> None:
    nodes = [node("c", "y", "z"), node("b", "x", "y"), node("a", "", "x")]
    graph = ProgramGraph()
    graph.add(nodes)
    assert graph.in_order() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([node("a", "nope", "y")], TemplateError, "reads variable 'nope'"),
        ([node("a", "y", "y")], TemplateError, "its own output"),
        ([node("a", "y", "z"), node("b", "z", "y")], TemplateError, "cycle"),
        ([node("a", "w", "z"), node("b", "z", "y"), node("c", "y", "w")], TemplateError, "cycle"),
        ([node("a", "", "y"), node("b", "", "y")], Conflict, "another output writes"),
        ([node("a", "", "y y")], Conflict, "another output writes"),
        ([node("a", "", "y"), node("a", "", "z")], Conflict, "'a' exists already"),
        ([node("a", "", "p")], Conflict, "another output writes"),
        ([node("old", "", "q")], Conflict, "'old' exists already"),
    ],
)
def test_a_refused_batch_leaves_nothing_behind(nodes: list[Node], error: type[Exception], message: str) -> None:
    graph = ProgramGraph()
    graph.add([node("old", "", "p")])
    with pytest.raises(error, match=message):
        graph.add(nodes)
    assert graph.in_order() == ["old"]
    assert "y" not in graph
    assert graph.consumers_of("y") == ()
    graph.add([node("a", "p", "y")])


def test_a_cycle_through_calls_of_earlier_batches_is_found() -> None:
    graph = ProgramGraph()
    graph.add([], ["x", "y"])
    graph.add([node("b", "x", "p")])
    graph.add([node("c", "p", "q")])
    with pytest.raises(TemplateError, match="cycle"):
        graph.add([node("a", "q", "x")])
    graph.add([node("d", "y", "x")])
    assert graph.in_order().index("d") < graph.in_order().index("b")


def test_a_declared_name_is_unique() -> None:
    graph = ProgramGraph()
    graph.add([], ["x"])
    for names in (["x"], ["z", "x"], ["z", "z"]):
        with pytest.raises(Conflict, match="exists already"):
            graph.add([], names)
    with pytest.raises(TemplateError):
        graph.add([node("a", "nope")], ["z"])
    assert "z" not in graph


def is_cyclic(edges: dict[str, set[str]]) -> bool:
    """Repeatedly remove nodes without predecessors (the slow reference)."""
    left = {name: set(before) for name, before in edges.items()}
    while free := [name for name, before in left.items() if not before & set(left)]:
        for name in free:
            del left[name]
    return bool(left)


@given(st.integers(2, 9), st.data())
def test_random_insertions_agree_with_a_search(num_nodes: int, data: st.DataObject) -> None:
    """Every call writes one declared variable, and reads any others: earlier, later, or such that a cycle closes."""
    graph = ProgramGraph()
    graph.add([], [f"v{idx}" for idx in range(num_nodes)])
    edges: dict[str, set[str]] = {}
    nodes: list[Node] = []
    for idx in data.draw(st.permutations(range(num_nodes))):
        reads = data.draw(st.sets(st.sampled_from([item for item in range(num_nodes) if item != idx]), max_size=3))
        new = Node(f"c{idx}", f"c{idx}", tuple(f"v{item}" for item in sorted(reads)), (f"v{idx}",))
        candidate = edges | {new.id: {f"c{item}" for item in reads}}
        if is_cyclic(candidate):
            with pytest.raises(TemplateError, match="cycle"):
                graph.add([new])
        else:
            graph.add([new])
            edges = candidate
            nodes.append(new)
        assert_in_order(graph, nodes)


def test_positions_are_renumbered_when_a_gap_is_used_up() -> None:
    """Insert each node directly behind the first, before the one inserted last: the gap halves every time."""
    successors: dict[str, list[str]] = {}
    order = TopologicalOrder(lambda item: successors.get(item, []), lambda item: [])
    order.insert("first", [], [])
    order.insert("last", ["first"], [])
    newest = "last"
    for idx in range(300):
        order.insert(f"n{idx}", ["first"], [newest])
        newest = f"n{idx}"
    assert order.sorted() == ["first", *(f"n{idx}" for idx in reversed(range(300))), "last"]


def shuffled_layers(num_layers: int, width: int) -> list[Node]:
    nodes = []
    for layer in range(num_layers):
        reads = tuple(f"v{layer - 1}.{idx}" for idx in range(0, width, 10)) if layer else ()
        nodes += [Node(f"c{layer}.{idx}", "c", reads, (f"v{layer}.{idx}",)) for idx in range(width)]
    random.Random(0).shuffle(nodes)
    return nodes


@pytest.mark.parametrize("shape", ["chain", "backward chain", "map-reduce", "backward map-reduce", "shuffled layers"])
def test_ten_thousand_calls_one_by_one_are_cheap(shape: str) -> None:
    """No shape may cost quadratic time. The bound is far above what is measured (under 1 s), so as not to be timing."""
    chain = [Node(f"c{idx}", "c", (f"v{idx}",), (f"v{idx + 1}",)) for idx in range(10_000)]
    maps = [Node(f"c{idx}", "c", ("v0",), (f"w{idx}",)) for idx in range(9_998)]
    tree = [Node("root", "c", (), ("v0",)), *maps, Node("sum", "c", tuple(f"w{idx}" for idx in range(9_998)), ("all",))]
    nodes = {"chain": chain, "map-reduce": tree, "shuffled layers": shuffled_layers(100, 100)}[
        shape.removeprefix("backward ")
    ]
    nodes = nodes[::-1] if shape.startswith("backward") else nodes
    graph = ProgramGraph()
    written = {name for item in nodes for name in item.writes}
    graph.add([], sorted({name for item in nodes for name in item.reads} | written))
    started = time.perf_counter()
    for item in nodes:
        graph.add([item])
    elapsed = time.perf_counter() - started
    assert len(graph) == 10_000
    assert elapsed < 20
