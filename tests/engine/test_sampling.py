"""A batch of draws: greedy, processors and their order, seeds whatever the batch, rows that cannot be drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kea.engine.sampling import Drawn, RowState, Sampler, SamplingRow
from kea.errors import EngineFault, InvalidRequest, KeaError
from kea.types import Sampling

VOCAB = 1500
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def sampler() -> Sampler:
    counter = itertools.count(1000)
    return Sampler(VOCAB, lambda: next(counter))


def random_logits(num_rows: int, seed: int = 0, width: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def ids(drawn: Sequence[Drawn | KeaError]) -> list[int]:
    assert all(isinstance(item, Drawn) for item in drawn), drawn
    return [item.token_id for item in drawn if isinstance(item, Drawn)]


def words(allowed: Sequence[int], width: int = VOCAB) -> torch.Tensor:
    bits = np.zeros(-(-width // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32).copy())


def test_greedy_takes_the_best_token_and_the_lowest_id_of_equal_ones(sampler: Sampler) -> None:
    logits = random_logits(4)
    logits[2] = 0.0
    logits[3, [900, 17]] = 50.0
    rows = [SamplingRow(sampler.create_state(GREEDY, [1])) for _ in range(4)]
    expected = [int(np.argmax(row)) for row in logits.numpy()]
    assert ids(sampler.sample(logits, rows)) == expected
    assert expected[2:] == [0, 17]


@pytest.mark.parametrize("width", [3, 129, 700])
def test_the_best_token_is_that_of_plain_comparison(sampler: Sampler, width: int) -> None:
    """Also among negative numbers, zeros of both signs, numbers of many magnitudes and infinities below all of them."""
    rng = np.random.default_rng(width)
    logits = rng.normal(size=(600, width)).astype(np.float32) * 10.0 ** rng.integers(-40, 30, (600, 1))
    logits[100:200] = -np.abs(logits[100:200])
    logits[200:300] = rng.choice(np.array([-0.0, 0.0, -1.0], np.float32), (100, width))
    logits[300:400][rng.random((100, width)) < 0.9] = -np.inf
    logits[:, 1] = np.where(np.isfinite(logits.max(1)), logits[:, 1], -3.0)
    rows = [SamplingRow(sampler.create_state(GREEDY, [])) for _ in logits]
    assert ids(sampler.sample(torch.from_numpy(logits.astype(np.float32)), rows)) == logits.argmax(1).tolist()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 130, 699])
def test_a_row_with_a_logit_that_is_no_number_or_has_no_bound_is_not_drawn(
    sampler: Sampler, bad: float, place: int
) -> None:
    logits = random_logits(2, width=700)
    logits[0, place] = np.copysign(bad, bad)
    for sampling in (GREEDY, Sampling(seed=1)):
        rows = [SamplingRow(sampler.create_state(sampling, [])) for _ in range(2)]
        first, second = sampler.sample(logits, rows)
        assert isinstance(first, EngineFault)
        assert isinstance(second, Drawn)


def test_an_empty_batch_draws_nothing(sampler: Sampler) -> None:
    assert sampler.sample(torch.empty(0, VOCAB), []) == []


def test_logits_are_left_as_they_are(sampler: Sampler) -> None:
    logits = random_logits(3)
    before = logits.clone()
    sampling = Sampling(seed=1, top_p=0.9, logit_bias={5: 10.0}, repetition_penalty=1.5)
    rows = [SamplingRow(sampler.create_state(sampling, [1, 2]), words(range(100)), (7,), 3) for _ in range(3)]
    sampler.sample(logits, rows)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("num_rows", [1, 1500])
def test_the_number_of_threads_is_left_as_it_is(sampler: Sampler, num_rows: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = sampler.create_state(Sampling(seed=1, top_p=0.9), [])
        sampler.sample(random_logits(num_rows), [SamplingRow(state)] * num_rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sampling_works_on_tensors_of_inference_mode(sampler: Sampler) -> None:
    with torch.inference_mode():
        logits = random_logits(2)
    rows = [SamplingRow(sampler.create_state(Sampling(seed=3, presence_penalty=1.0), [1]), banned=(2,))] * 2
    assert len(ids(sampler.sample(logits, rows))) == 2


SAMPLINGS = [
    GREEDY,
    Sampling(seed=7),
    Sampling(seed=-8, temperature=0.3),
    Sampling(seed=2**80 + 5, top_k=40),
    Sampling(seed=7, top_k=100, top_p=0.8),
    Sampling(seed=9, top_p=0.9),
    Sampling(seed=10, top_p=0.5, temperature=2.0),
    Sampling(seed=11, min_p=0.05),
    Sampling(seed=12, top_k=1200, top_p=0.99, min_p=0.001),
    Sampling(seed=13, presence_penalty=0.5, frequency_penalty=0.5),
    Sampling(seed=14, repetition_penalty=1.3, top_k=5),
    Sampling(seed=15, logit_bias={3: 20.0}),
]


def run_alone(sampler: Sampler, steps: Sequence[torch.Tensor], row: int, sampling: Sampling) -> list[int]:
    state = sampler.create_state(sampling, [row])
    return [ids(sampler.sample(logits[row : row + 1], [SamplingRow(state)]))[0] for logits in steps]


def test_a_seed_gives_the_same_tokens_whatever_the_batch(sampler: Sampler) -> None:
    steps = [random_logits(len(SAMPLINGS), seed) for seed in range(8)]
    alone = [run_alone(sampler, steps, row, sampling) for row, sampling in enumerate(SAMPLINGS)]
    states = [sampler.create_state(sampling, [row]) for row, sampling in enumerate(SAMPLINGS)]
    together: list[list[int]] = [[] for _ in SAMPLINGS]
    for index, logits in enumerate(steps):
        order = list(np.random.default_rng(index).permutation(len(states)))
        drawn = ids(sampler.sample(logits[order], [SamplingRow(states[row]) for row in order]))
        for row, token_id in zip(order, drawn, strict=True):
            together[row].append(token_id)
    assert together == alone


def test_draws_of_a_generation_and_of_different_seeds_differ(sampler: Sampler) -> None:
    logits = torch.zeros(1, VOCAB)
    state = sampler.create_state(Sampling(seed=0), [])
    first = [ids(sampler.sample(logits, [SamplingRow(state)]))[0] for _ in range(50)]
    other = [run_alone(sampler, [logits], 0, Sampling(seed=seed))[0] for seed in range(50)]
    assert len(set(first)) > 40
    assert len(set(other)) > 40


def test_a_row_without_seed_takes_one_from_the_source() -> None:
    seeds = iter([5, 6])
    sampler = Sampler(VOCAB, lambda: next(seeds))
    assert [sampler.create_state(Sampling(), []).seed for _ in range(2)] == [5, 6]
    assert sampler.create_state(Sampling(seed=1), []).seed == 1


def naive_process(logits: np.ndarray, row: SamplingRow, prompt: list[int], output: list[int]) -> np.ndarray:
    """The processors, one token at a time, in the documented order."""
    sampling = row.state.sampling
    result = logits.astype(np.float32).copy()
    for token_id, bias in sampling.logit_bias.items():
        result[token_id] += np.float32(bias)
    if row.mask is not None:
        bits = np.unpackbits(row.mask.numpy().view(np.uint8), bitorder="little")[: len(result)]
        result[bits == 0] = -np.inf
    result[list(row.banned)] = -np.inf
    for token_id in set(prompt) | set(output):
        factor = np.float32(sampling.repetition_penalty)
        result[token_id] = result[token_id] / factor if result[token_id] > 0 else result[token_id] * factor
    for token_id in set(output):
        result[token_id] -= np.float32(sampling.frequency_penalty) * output.count(token_id)
        result[token_id] -= np.float32(sampling.presence_penalty)
    return result


@pytest.mark.parametrize("seed", range(5))
def test_processors_apply_in_their_order(sampler: Sampler, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = 200
    sampler = Sampler(width, lambda: 0)
    prompts = [rng.integers(0, width, 30).tolist() for _ in range(6)]
    samplings = [
        Sampling(
            temperature=0.0,
            presence_penalty=float(rng.uniform(-2, 2)) if kind & 1 else 0.0,
            frequency_penalty=float(rng.uniform(-2, 2)) if kind & 1 else 0.0,
            repetition_penalty=float(rng.uniform(0.5, 2)) if kind & 2 else 1.0,
            logit_bias={int(t): float(rng.uniform(-9, 9)) for t in rng.integers(0, width, 5)} if kind & 4 else {},
        )
        for kind in rng.permutation(8)[:6].tolist()
    ]
    states = [sampler.create_state(sampling, prompt) for sampling, prompt in zip(samplings, prompts, strict=True)]
    outputs: list[list[int]] = [[] for _ in states]
    for step in range(40):
        logits = random_logits(6, 100 * seed + step, width)
        masks = [words(rng.integers(0, width, 60).tolist(), width) if rng.random() < 0.5 else None for _ in states]
        banned = [tuple(rng.integers(0, width, 3).tolist()) if rng.random() < 0.5 else () for _ in states]
        rows = [SamplingRow(*parts) for parts in zip(states, masks, banned, strict=True)]
        expected = [int(np.argmax(naive_process(logits[i].numpy(), rows[i], prompts[i], outputs[i]))) for i in range(6)]
        drawn = ids(sampler.sample(logits, rows))
        assert drawn == expected
        for output, token_id in zip(outputs, drawn, strict=True):
            output.append(token_id)


def test_frequency_and_presence_ignore_the_prompt_and_repetition_does_not() -> None:
    def draw(sampling: Sampling) -> int:
        sampler = Sampler(3, lambda: 0)
        state = sampler.create_state(sampling, [0, 0, 0])
        return ids(sampler.sample(torch.tensor([[2.0, 1.9, 0.0]]), [SamplingRow(state)]))[0]

    assert draw(Sampling(temperature=0.0, presence_penalty=1.0, frequency_penalty=1.0)) == 0
    assert draw(Sampling(temperature=0.0, repetition_penalty=1.5)) == 1


def test_a_mask_narrower_than_the_logits_forbids_what_it_does_not_cover(sampler: Sampler) -> None:
    logits = torch.arange(VOCAB, dtype=torch.float32)[None].repeat(2, 1)
    rows = [SamplingRow(sampler.create_state(GREEDY, []), mask) for mask in (words([3, 40], 64), None)]
    assert ids(sampler.sample(logits, rows)) == [40, VOCAB - 1]


def test_a_mask_wider_than_the_logits_is_cut() -> None:
    sampler = Sampler(10, lambda: 0)
    row = SamplingRow(sampler.create_state(GREEDY, []), words([2, 60], 64))
    assert ids(sampler.sample(torch.zeros(1, 10), [row])) == [2]


def test_banned_ids_outside_the_vocabulary_touch_nobody(sampler: Sampler) -> None:
    logits = torch.zeros(2, VOCAB)
    rows = [SamplingRow(sampler.create_state(GREEDY, []), banned=banned) for banned in ((VOCAB, -1, 10**12), (0, 1))]
    assert ids(sampler.sample(logits, rows)) == [0, 2]


@pytest.mark.parametrize("token_id", [-1, VOCAB, 10**12])
def test_a_bias_outside_the_vocabulary_is_refused_by_name(sampler: Sampler, token_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"logit_bias names the token {token_id}") as caught:
        sampler.create_state(Sampling(logit_bias={token_id: 1.0}), [])
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), Sampling(seed=1, top_p=0.5)])
def test_a_broken_row_fails_alone_and_keeps_its_state(sampler: Sampler, sampling: Sampling) -> None:
    logits = random_logits(5)
    expected = [run_alone(sampler, [logits], row, sampling)[0] for row in range(5)]
    logits[1, 77] = torch.nan
    logits[2] = -torch.inf
    logits[3, 5] = torch.inf
    states = [sampler.create_state(sampling, []) for _ in range(5)]
    drawn = sampler.sample(logits, [SamplingRow(state, logprobs=1) for state in states])
    assert [type(item) for item in drawn] == [Drawn, EngineFault, EngineFault, EngineFault, Drawn]
    assert [item.token_id for item in drawn if isinstance(item, Drawn)] == [expected[0], expected[4]]
    assert [state.num_drawn for state in states] == [1, 0, 0, 0, 1]


def test_a_row_with_nothing_left_names_the_conflict(sampler: Sampler) -> None:
    state = sampler.create_state(Sampling(seed=1), [])
    (drawn,) = sampler.sample(random_logits(1), [SamplingRow(state, words([2]), (2,))])
    assert isinstance(drawn, InvalidRequest)
    assert drawn.param == "min_tokens"
    assert state.num_drawn == 0


def test_a_state_counts_what_it_drew() -> None:
    state = RowState(Sampling(frequency_penalty=1.0), 0, VOCAB, [9])
    for token_id in [4, 5, 4, *range(100, 200)]:
        state.push(token_id)
    assert state.counts is not None
    counted = dict(zip(state.counts.ids.tolist(), state.counts.output_counts.tolist(), strict=True))
    assert counted == {4: 2.0, 5: 1.0} | dict.fromkeys(range(100, 200), 1.0)
    assert state.num_drawn == 103
