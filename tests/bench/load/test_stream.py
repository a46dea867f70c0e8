"""What counts as a token's arrival, in the streams of several servers."""

from __future__ import annotations

from typing import Any

import pytest

from kea.bench.load.stream import StreamTimer, Usage


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def usage(output_tokens: int, **details: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": output_tokens, **details}}


def timed(*events: dict[str, Any]) -> StreamTimer:
    """Feed events at the times 0, 1, 2, ... and close."""
    timer = StreamTimer()
    for at, event in enumerate(events):
        timer.observe(event, float(at))
    timer.close()
    return timer


def test_a_separate_finish_chunk_is_no_token() -> None:
    timer = timed(chunk("a"), chunk("b"), chunk("", "length"), usage(2))
    assert timer.token_times == [0, 1]
    assert (timer.num_output_tokens, timer.finish_reason) == (2, "length")


def test_a_finish_chunk_that_carries_the_last_token_counts() -> None:
    assert timed(chunk("a"), chunk("b", "length"), usage(2)).token_times == [0, 1]
    # vLLM's last token may have no printable text yet: only the usage tells that the finish chunk was a token.
    assert timed(chunk(""), chunk(""), chunk("", "length"), usage(3)).token_times == [0, 1, 2]


def test_the_role_is_no_token() -> None:
    timer = timed(delta(role="assistant", content=""), delta(content="a"), delta("stop"), usage(1))
    assert timer.token_times == [1]


@pytest.mark.parametrize("name", ["content", "reasoning_content", "tool_calls"])
def test_every_kind_of_text_counts(name: str) -> None:
    assert timed(delta(**{name: "x"}), delta("stop")).token_times == [0]


def test_without_usage_chunks_are_counted() -> None:
    timer = timed(chunk("a"), chunk("b"), chunk("", "length"))
    assert timer.usage is None
    assert timer.num_output_tokens == 2


def test_an_answer_of_unprintable_tokens_has_a_time() -> None:
    assert timed(chunk("", "length"), usage(4)).token_times == [0]
    assert timed(chunk("", "length")).token_times == [0]
    assert timed().token_times == []


def test_cached_tokens_are_read() -> None:
    assert timed(usage(1, prompt_tokens_details={"cached_tokens": 4})).usage == Usage(9, 1, 4)
    assert timed(usage(1, prompt_tokens_details=None)).usage == Usage(9, 1, None)


@pytest.mark.parametrize("event", [{"choices": [3]}, {"usage": {"completion_tokens": 1}}, {"choices": 4}])
def test_other_shapes_are_refused(event: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        StreamTimer().observe(event, 0.0)
