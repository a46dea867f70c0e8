"""Stop strings, end tokens, lengths: against a plain search over the whole text, for any split into tokens."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kea.engine.stopping import End, Lanes, OutputTracker, StopMatcher
from kea.types import FinishReason, Stopping
from tests.fakes.detokenizer import FakeDetokenizer

EOS = 1000
OTHER_EOS = 1001
STOP_ID = 1002


def first_stop(text: str, stop: tuple[str, ...], start: int = 0) -> tuple[int, str] | None:
    """Where the first complete stop string of text[start:] begins, and which: the longest of those that end there."""
    for end in range(start, len(text) + 1):
        complete = [s for s in stop if len(s) <= end - start and text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return None


stops = st.lists(st.text("ab\xe9", min_size=1, max_size=4), max_size=3).map(tuple)
texts = st.text("ab\xe9x", max_size=30)


def cut(length: int, places: list[int]) -> list[slice]:
    ends = sorted({0, length, *(place % (length + 1) for place in places)})
    return [slice(start, stop) for start, stop in pairwise(ends)]


@given(texts, stops, st.lists(st.integers(0, 60)))
def test_a_matcher_finds_what_a_plain_search_finds(text: str, stop: tuple[str, ...], places: list[int]) -> None:
    matcher = StopMatcher(stop)
    emitted, seen = "", ""
    for piece in cut(len(text), places):
        seen += text[piece]
        emitted += matcher.push(text[piece])
        found = first_stop(seen, stop)
        if found is not None:
            assert (emitted, matcher.matched) == (seen[: found[0]], found[1])
            return
        held = seen[len(emitted) :]
        assert seen.startswith(emitted)
        assert not held or any(s.startswith(held) for s in stop), "held back without need"
    assert first_stop(text, stop) is None
    assert emitted + matcher.flush() == text


@pytest.mark.parametrize(
    ("stop", "text", "emitted", "matched"),
    [
        (("bc", "abcd"), "xabcd", "xa", "bc"),  # complete first
        (("c", "bc"), "abc", "a", "bc"),  # complete together: the longest
        (("aab",), "aaab", "a", "aab"),
        (("abab", "abac"), "ababac", "", "abab"),
        (("\n\n",), "one\n\ntwo", "one", "\n\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_which_stop_wins(stop: tuple[str, ...], text: str, emitted: str, matched: str, size: int) -> None:
    matcher = StopMatcher(stop)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    result = ""
    while matcher.matched is None:
        result += matcher.push(pieces.pop(0))
    assert (result, matcher.matched) == (emitted, matched)


def test_a_long_repetitive_stop_costs_constant_time_per_character() -> None:
    """A hundred thousand characters that nearly match: a search that starts anew at each would take minutes."""
    stop = "a" * 5000 + "b"
    matcher = StopMatcher((stop, "a" * 4999 + "c"))
    emitted = "".join(matcher.push("a" * 10) for _ in range(10_000))
    assert len(emitted) == 100_000 - 5000
    assert matcher.push("b") == ""
    assert matcher.matched == stop


@dataclass(frozen=True)
class Output:
    """All that a tracker told about one output."""

    text: str
    end: End
    num_tokens: int


def follow(pieces: list[bytes], stopping: Stopping, last: int | None = None) -> Output:
    """Push the pieces as tokens 0, 1, ... (then `last`) until the output ends; `finish` it where it does not."""
    tracker = OutputTracker(stopping, (EOS, OTHER_EOS), FakeDetokenizer(pieces))
    text = ""
    for token_id in [*range(len(pieces)), *([last] if last is not None else [])]:
        progress = tracker.push(token_id)
        text += progress.text
        if progress.end is not None:
            return Output(text, progress.end, tracker.num_tokens)
    progress = tracker.finish(FinishReason.CANCELLED)
    assert progress.end is not None
    return Output(text + progress.text, progress.end, tracker.num_tokens)


@given(texts, stops, st.lists(st.integers(0, 60)), st.integers(0, 4), st.sampled_from([None, EOS, STOP_ID]))
def test_an_output_ends_where_a_plain_search_says(
    text: str, stop: tuple[str, ...], places: list[int], min_tokens: int, last: int | None
) -> None:
    pieces = [text.encode()[piece] for piece in cut(len(text.encode()), places)]
    stopping = Stopping(max_tokens=100, min_tokens=min_tokens, stop=stop, stop_token_ids=(STOP_ID,))
    output = follow(pieces, stopping, last)
    free = len(FakeDetokenizer(pieces).push(range(min(min_tokens, len(pieces)))))
    found = first_stop(text, stop, free)
    if found is None:
        reason = FinishReason.CANCELLED if last is None else FinishReason.STOP
        assert output.text == text
        assert output.end == End(reason, len(pieces), stop=STOP_ID if last == STOP_ID else None)
        return
    start, matched = found
    assert output.text == text[:start]
    prefixes = [b"".join(pieces[:count]).decode(errors="replace") for count in range(len(pieces) + 1)]
    num_kept = max(count for count, prefix in enumerate(prefixes) if text[:start].startswith(prefix))
    assert output.end == End(FinishReason.STOP, num_kept, text[len(prefixes[num_kept]) : start], matched)
    assert prefixes[output.end.num_kept] + output.end.residual == output.text
    assert output.end.num_kept >= min(min_tokens, output.num_tokens)


@given(st.lists(st.binary(max_size=4), max_size=12), stops, st.integers(1, 12))
def test_kept_text_and_residual_are_the_emitted_text_for_any_bytes(
    pieces: list[bytes], stop: tuple[str, ...], max_tokens: int
) -> None:
    output = follow(pieces, Stopping(max_tokens=max_tokens, stop=(*stop, "\ufffd")))
    kept = b"".join(pieces[: output.end.num_kept]).decode(errors="replace")
    assert kept + output.end.residual == output.text
    assert not any(s in output.text for s in (*stop, "\ufffd"))


def test_a_stop_inside_a_token_leaves_the_text_before_it_as_residual() -> None:
    output = follow([b"one ", b"two. Th", b"ree"], Stopping(max_tokens=9, stop=(". T",)))
    assert output == Output("one two", End(FinishReason.STOP, 1, "two", ". T"), 2)


def test_a_token_that_holds_the_first_byte_of_the_stop_is_not_kept() -> None:
    """The emitted text ends exactly before the character, but its first byte is in the token before."""
    output = follow([b"one", b"a\xc3", b"\xa9"], Stopping(max_tokens=9, stop=("\xe9",)))
    assert output == Output("onea", End(FinishReason.STOP, 1, "a", "\xe9"), 3)


def test_tokens_without_text_before_the_stop_are_kept() -> None:
    output = follow([b"one", b"", b"", b"END"], Stopping(max_tokens=9, stop=("END",)))
    assert output == Output("one", End(FinishReason.STOP, 3, "", "END"), 4)


def test_end_tokens_are_neither_kept_nor_text() -> None:
    stopping = Stopping(max_tokens=9, stop_token_ids=(STOP_ID,))
    assert follow([b"one"], stopping, EOS) == Output("one", End(FinishReason.STOP, 1), 2)
    assert follow([b"one"], stopping, OTHER_EOS) == Output("one", End(FinishReason.STOP, 1), 2)
    assert follow([b"one"], stopping, STOP_ID) == Output("one", End(FinishReason.STOP, 1, stop=STOP_ID), 2)


def test_an_end_token_releases_what_was_held_back() -> None:
    stopping = Stopping(max_tokens=9, stop=("END",))
    assert follow([b"one E", b"N"], stopping, EOS) == Output("one EN", End(FinishReason.STOP, 2), 3)


def test_the_last_token_of_max_tokens_is_kept_and_everything_emitted() -> None:
    stopping = Stopping(max_tokens=2, stop=("END",))
    assert follow([b"one E", b"N\xc3", b"x"], stopping) == Output("one EN\ufffd", End(FinishReason.LENGTH, 2), 2)
    assert follow([b"one "], stopping, EOS).end.reason is FinishReason.STOP
    assert follow([b"one ", b"END"], stopping) == Output("one ", End(FinishReason.STOP, 1, "", "END"), 2)


def test_ignored_end_tokens_are_text_but_stop_tokens_still_stop() -> None:
    tracker = OutputTracker(
        Stopping(max_tokens=3, ignore_eos=True, stop_token_ids=(5,)), (0, 5), FakeDetokenizer([b"</s>"])
    )
    assert tracker.push(0).text == "</s>"
    assert tracker.push(5).end == End(FinishReason.STOP, 1, stop=5)


def test_end_tokens_are_banned_until_min_tokens() -> None:
    stopping = Stopping(max_tokens=9, min_tokens=2, stop_token_ids=(STOP_ID,))
    tracker = OutputTracker(stopping, (EOS,), FakeDetokenizer([b"a", b"b"]))
    banned = [tracker.banned]
    for token_id in (0, 1):
        tracker.push(token_id)
        banned.append(tracker.banned)
    assert banned == [(EOS, STOP_ID), (EOS, STOP_ID), ()]
    ignoring = OutputTracker(replace(stopping, ignore_eos=True), (EOS,), FakeDetokenizer([]))
    assert ignoring.banned == (STOP_ID,)


def test_a_complete_constraint_ends_as_stopped_also_at_max_tokens() -> None:
    tracker = OutputTracker(Stopping(max_tokens=1, stop=("bx",)), (EOS,), FakeDetokenizer([b"ab"]))
    progress = tracker.push(0, is_complete=True)
    assert (progress.text, progress.end) == ("ab", End(FinishReason.STOP, 1))


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"E", b"\xc3"]), min_size=50, max_size=300))
def test_what_a_tracker_remembers_is_bounded(pieces: list[bytes]) -> None:
    tracker = OutputTracker(Stopping(max_tokens=1000, stop=("ENDE",)), (), FakeDetokenizer(pieces))
    for token_id in range(len(pieces)):
        assume(tracker.push(token_id).end is None)
        assert len(tracker._boundaries) <= 5
        assert len(tracker._tail) <= 8


# Lanes


def test_a_lane_has_what_nothing_is_to_be_looked_at_for() -> None:
    pieces = [b"a", b" bc", b"<", b"\xe2\x82", "é".encode(), b"x<y", b"z"]
    stopping = Stopping(max_tokens=100, stop=("<end",), stop_token_ids=(6,))
    lanes = Lanes()
    lane, alike, other = (
        lanes.of(one, (EOS,), FakeDetokenizer(pieces), skip_special=True)
        for one in (stopping, replace(stopping, max_tokens=5), replace(stopping, stop=()))
    )
    assert lane is alike
    assert lane is not other
    found = {}
    for token_id in (*range(len(pieces)), -1, -2, EOS):
        with suppress(KeyError):
            found[token_id] = lane[token_id].text
    assert found == {0: "a", 1: " bc", 4: "é"}
    assert other[2].text == "<"


def test_tokens_of_a_quiet_output_need_only_be_counted() -> None:
    """Whatever comes behind them ends, and holds back, as if all had been pushed."""
    pieces = [b"ab", b"c<", b"end", b"\xe2\x82", b"\xac", b"d"]
    rng = random.Random(0)
    num_counted = 0
    for _ in range(300):
        stopping = Stopping(max_tokens=40, min_tokens=rng.choice([0, 3]), stop=("<en",), ignore_eos=True)
        trackers = [OutputTracker(stopping, (), FakeDetokenizer(pieces)) for _ in range(2)]
        texts = ["", ""]
        ends: list[End | None] = [None, None]
        for token_id in rng.choices(range(len(pieces)), [9, 1, 1, 1, 1, 9], k=30):
            for which, tracker in enumerate(trackers):
                if which and tracker.is_quiet and token_id in (0, 5):
                    texts[which] += tracker.lane[token_id].text
                    tracker.num_tokens += 1
                    num_counted += 1
                    continue
                progress = tracker.push(token_id)
                texts[which] += progress.text
                ends[which] = progress.end
            assert (texts[0], ends[0]) == (texts[1], ends[1])
            if ends[0] is not None:
                break
        if ends[0] is None:
            assert trackers[0].finish(FinishReason.CANCELLED) == trackers[1].finish(FinishReason.CANCELLED)
    assert num_counted > 1000
