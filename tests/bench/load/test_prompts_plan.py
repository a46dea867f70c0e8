"""Prompts have the wanted length and share what they are to share; plans are reproducible and cut openly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.bench.load.lengths import Fixed, Uniform
from kea.bench.load.plan import Arrivals, Planned, TraceScale, Workload, build_plan
from kea.bench.load.prompts import WORDS, FilePrompt, Lexicon, Piece, read_prompts, render
from kea.bench.load.traces import TraceEntry
from kea.errors import InvalidRequest

ONE_EACH = Lexicon(WORDS, (1.0,) * len(WORDS), 1.0, is_exact=True)
WORKLOAD = Workload(20, 7, Arrivals(rate_per_s=5.0), Uniform(10, 30), Fixed(8))


def cost(text: str, lexicon: Lexicon) -> float:
    price = dict(zip(lexicon.words, lexicon.costs, strict=True))
    return lexicon.base_tokens + sum(price[word] for word in text.split())


@given(
    st.integers(2, 400), st.integers(0, 200), st.lists(st.integers(1, 4), min_size=3, max_size=30), st.integers(0, 9)
)
def test_a_prompt_has_its_length(length: int, prefix_len: int, costs: list[int], seed: int) -> None:
    words = WORDS[: len(costs) + 1]
    lexicon = Lexicon(words, (1.0, *map(float, costs)), 1.0, is_exact=True)
    pieces = (Piece("p", prefix_len), Piece(str(seed), length))
    assert cost(render(pieces, lexicon), lexicon) == prefix_len + length


def test_without_a_word_of_one_token_it_is_short_by_less_than_the_cheapest() -> None:
    lexicon = Lexicon(("a", "b"), (3.0, 4.0), 0.0, is_exact=True)
    for length in range(3, 40):
        assert 0 <= length - cost(render((Piece("x", length),), lexicon), lexicon) < 3


def test_average_costs_come_near() -> None:
    lexicon = Lexicon(WORDS, (1.37,) * len(WORDS), 1.0, is_exact=False)
    assert cost(render((Piece("x", 500),), lexicon), lexicon) == pytest.approx(500, abs=1.37)


def test_no_prompt_is_empty() -> None:
    assert render((Piece("x", 1),), ONE_EACH) in WORDS


def test_words_are_unique() -> None:
    assert len(set(WORDS)) == len(WORDS) > 100


def test_a_plan_is_reproducible_and_rounds_differ() -> None:
    plan = build_plan(WORKLOAD)
    assert plan == build_plan(WORKLOAD)
    assert plan != build_plan(WORKLOAD, 1)
    assert plan != build_plan(replace(WORKLOAD, seed=8))
    assert [planned.index for planned in plan] == list(range(20))
    assert {planned.output_len for planned in plan} == {8}
    assert all(10 <= (planned.input_len or 0) <= 30 for planned in plan)
    assert len({text(planned) for planned in plan}) == 20


def test_a_shared_prefix_is_shared_by_all_rounds() -> None:
    workload = replace(WORKLOAD, prefix_len=50)
    texts = [text(planned) for round_idx in (0, 1) for planned in build_plan(workload, round_idx)]
    assert len({" ".join(one.split()[:50]) for one in texts}) == 1
    assert len({" ".join(one.split()[50:]) for one in texts}) == 40
    assert all(60 <= (planned.input_len or 0) <= 80 for planned in build_plan(workload))


def text(planned: Planned) -> str:
    assert not isinstance(planned.prompt, str)
    return render(planned.prompt, ONE_EACH)


def test_arrivals() -> None:
    poisson = [planned.offset_s for planned in build_plan(WORKLOAD)]
    assert poisson[0] == 0
    assert len(set(poisson)) == 20
    burst = build_plan(replace(WORKLOAD, arrivals=Arrivals()))
    assert {planned.offset_s for planned in burst} == {0.0}
    closed = build_plan(replace(WORKLOAD, arrivals=Arrivals(concurrency=3)))
    assert {planned.offset_s for planned in closed} == {None}


TRACE = (TraceEntry(0.0, 1100, 40, (0, 1, 2)), TraceEntry(2.0, 1200, 60, (0, 1, 3)), TraceEntry(3.0, 100, 9, (4,)))


def test_a_trace_gives_times_lengths_and_shared_blocks() -> None:
    workload = replace(WORKLOAD, arrivals=Arrivals(), trace=TRACE, trace_scale=TraceScale(0.5, 0.1))
    first, second, third = build_plan(workload)
    assert [planned.offset_s for planned in (first, second, third)] == [0.0, 1.0, 1.5]
    assert [planned.input_len for planned in (first, second, third)] == [110, 120, 10]
    assert [planned.output_len for planned in (first, second, third)] == [4, 6, 1]
    # Two blocks of 51.2 tokens are shared; the third, shorter one is not.
    shared = [a == b for a, b in zip(text(first).split(), text(second).split(), strict=False)]
    assert all(shared[:102])
    assert not all(shared[102:])


def test_a_trace_can_give_lengths_only() -> None:
    workload = replace(WORKLOAD, trace=TRACE)
    plan = build_plan(workload)
    assert [planned.output_len for planned in plan] == [40, 60, 9]
    assert plan[1].offset_s != 2.0


def test_limits_cut_and_say_so() -> None:
    plan = build_plan(replace(WORKLOAD, trace=TRACE, max_input_len=1150, max_output_len=50))
    assert [(planned.input_len, planned.output_len, planned.is_cut) for planned in plan] == [
        (1100, 40, False),
        (1150, 50, True),
        (100, 9, False),
    ]


def test_prompts_of_a_file_go_around() -> None:
    workload = replace(WORKLOAD, num_requests=3, prompts=(FilePrompt("one", 5), FilePrompt("two")))
    assert [(p.prompt, p.output_len) for p in build_plan(workload)] == [("one", 5), ("two", 8), ("one", 5)]


def test_prompt_files(tmp_path: Path) -> None:
    plain = tmp_path / "prompts.txt"
    plain.write_text("first\n\nsecond\n")
    assert read_prompts(plain) == (FilePrompt("first"), FilePrompt("second"))
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a\\nb", "output_len": 4}\n{"prompt": "c"}\n')
    assert read_prompts(lines) == (FilePrompt("a\nb", 4), FilePrompt("c"))


@pytest.mark.parametrize("content", ["", '{"prompt": ""}', '{"text": "a"}', "[]", "{", '{"prompt": 3}'])
def test_malformed_prompt_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidRequest, match="prompts"):
        read_prompts(path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_requests": 0},
        {"prefix_len": -1},
        {"max_output_len": 0},
        {"arrivals": Arrivals(concurrency=0)},
        {"trace_scale": TraceScale(time=0.0)},
    ],
)
def test_impossible_workloads_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        replace(WORKLOAD, **change)  # type: ignore[arg-type]


def test_drawn_lengths_do_not_depend_on_the_arrivals() -> None:
    closed = replace(WORKLOAD, arrivals=Arrivals(concurrency=2))
    assert [p.input_len for p in build_plan(WORKLOAD)] == [p.input_len for p in build_plan(closed)]
