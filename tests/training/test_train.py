"""A run trains, stops, goes on from its weights, and is exported as a model that transformers computes alike."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.config import ModelConfig, OptimConfig, Recipe
from training.corpus import Corpus
from training.data import Batch, RowMaker
from training.export import export
from training.model import Llama, first_token_shares, sink_penalty
from training.optimizer import orthogonalize
from training.resume import resume
from training.tokenizer import save_tokenizer
from training.train import Progress, Run, Segment, learning_rate_scale, load_progress

TINY = ModelConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32)
RECIPE = Recipe(model=TINY, tokens_per_step=256)


def train_steps(out: Path, tokenizer: Tokenizer, corpus: Corpus, steps: int) -> Progress:
    rows = RowMaker(tokenizer, corpus, RECIPE.mixture, RECIPE.seed, sink_token=False)
    rows.set_size(0.1)
    run = Run(RECIPE, Segment(out, 128, 60.0, 0.0, "cpu", compiled=False), tokenizer, rows)
    return run.run(max_steps=steps)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, corpus: Corpus) -> Path:
    out = tmp_path_factory.mktemp("run")
    save_tokenizer(tokenizer, out, TINY.max_len)
    train_steps(out, tokenizer, corpus, 2)
    return out


def test_a_second_segment_goes_on_from_the_weights(run_dir: Path, tokenizer: Tokenizer, corpus: Corpus) -> None:
    before = load_file(run_dir / "master.safetensors")
    progress = train_steps(run_dir, tokenizer, corpus, 2)
    after = load_file(run_dir / "master.safetensors")
    assert (progress.step, progress.tokens) == (4, 4 * RECIPE.tokens_per_step)
    assert json.loads((run_dir / "state.json").read_text())["step"] == 4
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    # Two warmup steps move weights by little: had the run started anew, they would be unrelated.
    assert all(torch.allclose(before[name], after[name], atol=0.02) for name in before)


def test_training_on_one_batch_lowers_its_loss(tokenizer: Tokenizer, corpus: Corpus, tmp_path: Path) -> None:
    rows = RowMaker(tokenizer, corpus, RECIPE.mixture, RECIPE.seed, sink_token=False)
    rows.set_size(0.1)
    batch = rows.batch(2, 128)
    run = Run(RECIPE, Segment(tmp_path, 128, 1.0, 0.0, "cpu", compiled=False), tokenizer, rows)
    losses = [run.step_on(batch, scale=1.0) for _ in range(20)]
    assert losses[-1] < losses[0] - 1.0


def test_transformers_computes_the_exported_model_alike(run_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = replace(TINY, vocab_size=tokenizer.get_vocab_size())
    export(run_dir, tmp_path, shape)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = Llama(shape)
    halves = {name: w.half().float() for name, w in load_file(run_dir / "master.safetensors").items()}
    ours.load_state_dict(halves)
    ids = torch.randint(8, shape.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = ours(ids) @ ours.embed_tokens.weight.t()
        assert torch.allclose(mine, theirs(ids).logits, atol=1e-4)


def test_an_exported_model_becomes_a_run_again(run_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    exported, again = tmp_path / "model", tmp_path / "run"
    export(run_dir, exported, replace(TINY, vocab_size=tokenizer.get_vocab_size()))
    resume(exported, run_dir / "state.json", again)
    assert load_progress(again) == load_progress(run_dir)
    before, after = (load_file(folder / "master.safetensors") for folder in (run_dir, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].half().float(), after[name]) for name in before)
    with pytest.raises(FileExistsError, match=r"master\.safetensors"):
        resume(exported, run_dir / "state.json", again)


def test_the_schedule_warms_up_and_cools_down() -> None:
    optim = OptimConfig(warmup_steps=10)
    segment = Segment(Path(), 128, 10.0, 5.0, "cpu", compiled=False)
    assert learning_rate_scale(0, 0.0, optim, segment) == pytest.approx(0.1)
    assert learning_rate_scale(50, 100.0, optim, segment) == 1.0
    assert learning_rate_scale(90, 450.0, optim, segment) == pytest.approx(0.5)
    assert learning_rate_scale(90, 450.0, optim, replace(segment, peak=0.2)) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(stack).float())
    # Newton-Schulz of five steps keeps them in this band on purpose: see Muon's write-up.
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_the_share_of_the_first_token_is_that_of_the_attention_weights() -> None:
    noise = torch.Generator().manual_seed(4)
    q, k = (torch.randn(2, heads, 512, 8, generator=noise) for heads in (4, 2))
    logits = (q @ k.repeat_interleave(2, 1).mT) * 8**-0.5
    weights = logits.masked_fill(torch.ones(512, 512, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    of_head_1 = [weights[row, 1, start + 15 : start + 256 : 16, 0].mean() for row in (0, 1) for start in (0, 256)]
    shares = first_token_shares(q, k)
    assert shares.shape == (4, 4)
    assert torch.allclose(shares[1], torch.stack(of_head_1))


def test_heads_are_pushed_to_their_share_and_no_further() -> None:
    shares = torch.tensor([[[0.001], [0.001]], [[0.4], [0.6]]])  # the first layer is left alone
    assert float(sink_penalty(shares, 0.3)) == 0.0
    assert float(sink_penalty(shares, 0.8)) == pytest.approx((math.log(0.8 / 0.4) + math.log(0.8 / 0.6)) / 2)


def test_a_pushed_run_leans_on_its_first_token(tokenizer: Tokenizer, corpus: Corpus, tmp_path: Path) -> None:
    rows = RowMaker(tokenizer, corpus, RECIPE.mixture, RECIPE.seed, sink_token=True)
    rows.set_size(0.1)
    batch = rows.batch(2, 128)
    ids = torch.from_numpy(batch.ids)
    pushed = replace(RECIPE, sink_token=True, sink_share=0.5)
    run = Run(pushed, Segment(tmp_path, 128, 1.0, 0.0, "cpu", compiled=False), tokenizer, rows)
    with torch.no_grad():
        before = run.model.hidden_and_shares(ids)[1][1:].mean()
        for _ in range(30):
            with torch.enable_grad():
                run.step_on(batch, scale=1.0)
        after = run.model.hidden_and_shares(ids)[1][1:].mean()
    assert after > 3 * before


def test_only_the_heaviest_tokens_have_a_loss(tokenizer: Tokenizer, corpus: Corpus, tmp_path: Path) -> None:
    rows = RowMaker(tokenizer, corpus, RECIPE.mixture, RECIPE.seed, sink_token=False)
    run = Run(RECIPE, Segment(tmp_path, 128, 1.0, 0.0, "cpu", compiled=False), tokenizer, rows)
    weights = torch.full((2, 128), 0.05)
    weights[1, 100:120] = 4.0
    chosen = run.heaviest(weights)
    assert len(chosen) == len(set(chosen.tolist())) == 96
    assert set(range(228, 248)) <= set(chosen.tolist())
    assert any(position < 128 for position in chosen.tolist())


def test_a_stopped_segment_saves_what_it_has(tokenizer: Tokenizer, corpus: Corpus, tmp_path: Path) -> None:
    rows = RowMaker(tokenizer, corpus, RECIPE.mixture, RECIPE.seed, sink_token=False)
    rows.set_size(0.1)
    run = Run(RECIPE, Segment(tmp_path, 128, 60.0, 0.0, "cpu", compiled=False), tokenizer, rows)
    step, taken = run.step_on, 0

    def stop_at_the_third(batch: Batch, scale: float) -> float:
        nonlocal taken
        taken += 1
        if taken == 3:
            run.stop()
        return step(batch, scale)

    run.step_on = stop_at_the_third  # type: ignore[method-assign]
    assert run.run().step == 3
    assert load_progress(tmp_path).step == 3
    assert (tmp_path / "master.safetensors").exists()
