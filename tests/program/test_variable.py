from __future__ import annotations

import pytest

from kea.errors import CallFailed, Conflict
from kea.program.variable import MOVES, SemanticVariable, VariableState


def test_pieces_add_up_to_the_value() -> None:
    variable = SemanticVariable("v", "name")
    seen: list[str] = []
    variable.watch(lambda: seen.append(variable.text))
    for piece in ("He", "", "llo"):
        variable.write(piece)
    assert variable.state is VariableState.STREAMING
    variable.finish()
    assert variable.value == "Hello"
    assert variable.read_from(1) == ["llo"]
    assert seen[-1] == "Hello"
    assert variable.is_done


def test_an_output_may_be_empty() -> None:
    variable = SemanticVariable("v")
    variable.finish()
    assert variable.value == ""
    assert variable.read_from(0) == []


def test_a_variable_is_set_once() -> None:
    variable = SemanticVariable("v")
    variable.set("one")
    with pytest.raises(Conflict, match="'v' is ready"):
        variable.set("two")
    with pytest.raises(Conflict):
        variable.write("three")
    assert variable.value == "one"


def test_a_failed_variable_raises_its_error() -> None:
    variable = SemanticVariable("v")
    variable.write("part")
    error = CallFailed("no")
    variable.fail(error)
    with pytest.raises(CallFailed) as caught:
        _ = variable.value
    assert caught.value is error
    with pytest.raises(Conflict):
        variable.finish()


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(VariableState)
    assert not MOVES[VariableState.READY]
    assert not MOVES[VariableState.FAILED]


def written(*pieces: str) -> SemanticVariable:
    variable = SemanticVariable("v")
    for piece in pieces:
        variable.write(piece)
    variable.begin_again()
    return variable


def test_a_second_run_with_the_same_text_goes_unnoticed() -> None:
    variable = written("abc", "def")
    assert variable.read_from(0) == ["abc", "def"]
    for piece in ("a", "bcdefg", "h"):
        variable.write(piece)
    variable.finish()
    assert variable.read_from(2) == ["g", "h"]
    assert variable.value == "abcdefgh"


@pytest.mark.parametrize("pieces", [("abXY",), ("a", "bXY"), ("ab", "XY")])
def test_unread_text_is_replaced_where_it_differs(pieces: tuple[str, ...]) -> None:
    variable = written("abc", "def")
    for piece in pieces:
        variable.write(piece)
    variable.finish()
    assert variable.value == "abXY"


def test_a_second_run_may_end_earlier_than_unread_text() -> None:
    variable = written("abc", "def")
    variable.write("abcd")
    variable.finish()
    assert variable.value == "abcd"


def test_read_text_is_never_taken_back() -> None:
    variable = written("abc")
    variable.read_from(0)
    variable.write("ab")
    with pytest.raises(Conflict, match="behind character 2"):
        variable.write("X")
    shorter = written("abc")
    shorter.read_from(0)
    shorter.write("ab")
    with pytest.raises(Conflict, match="behind character 2"):
        shorter.finish()


def test_text_behind_what_was_read_may_change() -> None:
    variable = SemanticVariable("v")
    variable.write("abc")
    variable.read_from(0)
    variable.write("def")
    variable.begin_again()
    variable.write("abcX")
    variable.finish()
    assert variable.value == "abcX"
    assert variable.read_from(1) == ["X"]


def test_a_third_run_starts_over_again() -> None:
    variable = written("abcdef")
    variable.write("ab")
    variable.begin_again()
    variable.write("abcdefg")
    variable.finish()
    assert variable.value == "abcdefg"
