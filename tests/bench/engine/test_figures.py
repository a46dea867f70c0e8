"""Figures and shows of a run whose answers are known: ratios per round, bounds, goals that hold and that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kea.bench.base import Peer, Show
from kea.bench.engine.base import Answer, Precision, Refusal
from kea.bench.engine.cells import Cell, Load, create_cells
from kea.bench.engine.figures import Measured, bound_seconds, refusals, seconds_of, share_of_bound, speedup
from kea.bench.engine.goals import build_shows
from kea.bench.engine.running import Rounds
from kea.bench.engine.shapes import SHAPES

SHAPE = SHAPES["100m"]
GB = 1e9
RATES = {"read": {"bf16": 20 * GB, "f32": 20 * GB, "int8": 20 * GB}, "product": {"32": 50 * GB, "1024": 100 * GB}}


def measured(times: dict[tuple[str, str], list[float]], load: Load | None = None) -> Measured:
    """Return a run with these seconds per step, by system and cell, one per round."""
    cells = tuple(create_cells(SHAPE, load or Load(scenarios=("prefill", "decode"), contexts=(128,))))
    rounds = Rounds()
    for (label, name), values in times.items():
        key = "seconds" if name.startswith("prefill") else "step_s"
        rounds.results[label, name] = {
            index: Answer({key: value if key == "seconds" else [value]}) for index, value in enumerate(values)
        }
        rounds.bounds[name] = dict.fromkeys(range(len(values)), RATES)
    peers = tuple(Peer(label) for label in dict.fromkeys(label for label, _ in times))
    return Measured(SHAPE, cells, (), peers, rounds)


def cell(run: Measured, name: str) -> Cell:
    found = run.cell(name)
    assert found is not None
    return found


def show(run: Measured, text: str) -> Show:
    (found,) = [one for one in build_shows(run) if text in one.name]
    return found


B1, B8 = "decode batch 1, context 128", "decode batch 8, context 128"


def test_a_ratio_is_of_the_same_round() -> None:
    run = measured({("kea bf16", B1): [0.01, 0.02, 0.04], ("llamacpp bf16", B1): [0.02, 0.03, 0.04]})
    spread = speedup(run, "kea bf16", "llamacpp bf16", B1)
    assert spread is not None
    assert (spread.median, spread.low, spread.high) == (1.5, 1.0, 2.0)


def test_a_round_that_one_side_missed_is_in_no_ratio() -> None:
    run = measured({("kea bf16", B1): [0.01, 0.02], ("llamacpp bf16", B1): [0.02, 0.03]})
    run.rounds.results["kea bf16", B1][0] = Refusal("failed", "no")
    spread = speedup(run, "kea bf16", "llamacpp bf16", B1)
    assert spread is not None
    assert spread.low == spread.high == 1.5
    assert refusals(run) == [("kea bf16", B1, Refusal("failed", "no"), 1)]


def test_one_sequence_is_bound_by_reading_weights_and_its_kv() -> None:
    run = measured({("kea bf16", B1): [0.0222]})
    weights, kv = 110_886_912 * 2, 128 * 30 * 2 * 3 * 64 * 4
    (bound_s,) = bound_seconds(run, cell(run, B1), Precision.BF16).values()
    assert bound_s == pytest.approx((weights + kv) / (20 * GB))
    halved = replace(run, kv_value_bytes=SHAPE.kv_value_bytes("float16"))
    (half_s,) = bound_seconds(halved, cell(run, B1), Precision.BF16).values()
    assert half_s == pytest.approx((weights + kv / 2) / (20 * GB))
    share = share_of_bound(run, "kea bf16", cell(run, B1), Precision.BF16)
    assert share is not None
    assert share.median == pytest.approx(bound_s / 0.0222)


def test_many_tokens_are_bound_by_the_best_rate_of_products() -> None:
    run = measured({("kea bf16", "prefill 1024"): [4.0]})
    head = SHAPE.vocab_size * SHAPE.hidden
    flops = 2 * ((SHAPE.num_product_weights - head) * 1024 + head) + 4 * 30 * 9 * 64 * 1024 * 1025 / 2
    (bound_s,) = bound_seconds(run, cell(run, "prefill 1024"), Precision.BF16).values()
    assert bound_s == pytest.approx(flops / (100 * GB))


@pytest.mark.parametrize(("peer_s", "holds"), [(0.012, True), (0.0119, False)])
def test_a_goal_holds_or_does_not(peer_s: float, holds: bool) -> None:
    run = measured({("kea bf16", B1): [0.01], ("llamacpp bf16", B1): [peer_s]})
    row = show(run, f"{B1}: kea bf16 against llamacpp bf16")
    assert (row.goal, row.holds) == (">= 1.2", holds)


@pytest.mark.parametrize(
    ("ours", "other", "name", "goal"),
    [
        ("kea bf16", "llamacpp bf16", B1, ">= 1.2"),
        ("kea int8", "llamacpp int8", B1, ">= 1.2"),
        ("kea f32", "llamacpp f32", B1, ">= 1"),
        ("kea f32", "llamacpp f32", "decode batch 1, context 2048", ">= 1.3"),
        ("kea bf16", "llamacpp bf16", "decode batch 32, context 2048", ">= 1.3"),
        ("kea bf16", "llamacpp bf16", "decode batch 4, context 128", None),
        ("kea bf16", "openvino f32", "decode batch 16, context 2048", ">= 1.5"),
        ("kea bf16", "vllm f32", B8, ">= 3"),
        ("kea bf16", "transformers f32", "decode batch 32, context 128", ">= 3"),
        ("kea bf16", "vllm f32", B1, None),
        ("kea bf16", "openvino f32", "prefill 1024", ">= 1"),
        ("kea bf16", "openvino f32", "prefill 4096", None),
    ],
)
def test_goals_are_those_of_the_aim(ours: str, other: str, name: str, goal: str | None) -> None:
    run = measured({(ours, name): [0.01], (other, name): [0.02]}, Load(scenarios=("prefill", "decode")))
    assert show(run, f"{name}: {ours} against {other}").goal == goal


def test_a_goal_that_was_not_measured_is_a_row_without_a_value() -> None:
    run = measured({("kea bf16", B1): [0.01], ("llamacpp bf16", B1): [0.02]})
    row = show(run, f"{B8}: kea bf16 against llamacpp bf16")
    assert (row.value, row.goal, row.holds, row.note) == (None, ">= 1.3", None, "not measured")


def test_another_shape_has_figures_but_no_goals() -> None:
    run = measured({("kea bf16", B1): [0.01], ("llamacpp bf16", B1): [0.02]})
    row = show(replace(run, shape=SHAPES["25m"]), "against llamacpp bf16")
    assert (row.value, row.goal, row.holds) == (2.0, None, None)


def test_a_single_stream_of_the_small_model_has_a_goal_of_its_own() -> None:
    run = measured({("kea f32", B1): [0.01], ("openvino f32", B1): [0.009]})
    row = show(replace(run, shape=replace(SHAPE, name="stories260k")), "against openvino f32")
    assert (row.goal, row.holds) == (">= 1", False)


def test_sharing_is_judged_by_what_the_prefix_adds_to_a_step() -> None:
    what = "32 under 2048"
    times = {"no context: 32": 0.05, "no prefix: 32": 0.1, f"shared: {what}": 0.15, f"unshared: {what}": 0.3}
    run = measured({("kea bf16", name): [value] for name, value in times.items()}, Load(scenarios=("shared",)))
    row = show(run, "attention when shared over unshared")
    assert row.value == pytest.approx(0.4)
    assert row.holds
    share = show(run, "prefix part, share of the arithmetic bound")
    assert share.value == pytest.approx(4 * 30 * 9 * 64 * 32 * 2048 / (100 * GB) / 0.05)


@pytest.mark.parametrize(("tokens", "holds"), [(6_800, True), (6_801, False)])
def test_the_kv_of_a_shared_prefix_is_counted(tokens: int, holds: bool) -> None:
    name = "shared: 32 under 2048"
    run = measured({("kea bf16", name): [0.1]}, Load(scenarios=("shared",), num_steps=1))
    run.rounds.results["kea bf16", name][0] = Answer({"step_s": [0.1], "kv_tokens": tokens, "kv_once_tokens": 6_800})
    assert show(run, f"{name}: kea bf16, KV held").holds is holds


def test_overhead_is_what_model_and_sampler_leave_of_a_step() -> None:
    name = "overhead, batch 32"
    run = measured({("kea bf16", name): [0.1]}, Load(scenarios=("overhead",)))
    answer = {"step_s": [0.1, 0.2], "model_s": [0.0985, 0.1985], "sampler_s": [0.001, 0.001]}
    run.rounds.results["kea bf16", name][0] = Answer(answer)
    row = show(run, "outside model and sampler")
    assert row.value == pytest.approx(0.5)


def test_seconds_of_nothing_are_none() -> None:
    run = measured({("kea bf16", B1): [0.01]})
    assert seconds_of(run, "kea bf16", B8) == {}


def test_goodput_is_judged_by_the_unloaded_latencies_of_vllm() -> None:
    load = Load(scenarios=("arrivals",), requests=((0.0, 8, 2), (1.0, 8, 2)))
    run = measured({("kea bf16", "x"): [1.0], ("vllm f32", "x"): [1.0]}, load)
    alone, together = (one.name for one in run.cells)

    def rows(ttft_s: float) -> Answer:
        row = {"ttft_s": ttft_s, "tpot_s": 0.01, "e2e_s": ttft_s + 0.01}
        return Answer({"requests": [{**row, "offset_s": 0.0}, {**row, "offset_s": 1.0}]})

    run.rounds.results["vllm f32", alone] = {0: rows(0.1)}
    run.rounds.results["vllm f32", together] = {0: rows(0.2)}
    run.rounds.results["kea bf16", together] = {0: rows(0.201)}
    assert show(run, "vllm f32, goodput").value == pytest.approx(2 / 1.21)
    missed = show(run, "kea bf16, goodput")
    assert missed.value == 0.0
    assert "TTFT <= 200 ms, TPOT <= 15 ms" in missed.note
