"""The training loop: one segment, from nothing or from saved weights, for a given number of minutes.

    python -m training.train --data DIR --out .train/run --length 512 --minutes 9 [--cooldown 3] [--device cuda]

The folder `--out` holds the tokenizer, the tokens of the books, the latest weights in fp32 (master.safetensors), how
far they are (state.json) and the log (log.jsonl). A segment continues what it finds there; the optimizer is warmed up
again. Ctrl-C or SIGTERM ends it after a step, with everything saved; a second Ctrl-C ends it at once. Knows nothing of
the prompts inside the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from training import model as model_module
from training.command_line import Mistake, in_one_sentence
from training.config import OptimConfig, Recipe
from training.corpus import check_data, load_corpus
from training.data import Batch, RowMaker
from training.model import Llama, sink_penalty
from training.optimizer import Optimizer
from training.vocabulary import load_or_train_tokenizer

SAVE_EVERY_S = 120.0
LOG_EVERY = 25
NOISE = 0.01  # less than any difference between two weights of tokens
SHORTEST = 128  # tokens of a row: below it, few samples fit
FULL_SIZE_LEN = 1024  # samples have their full difficulty in rows of this length


@dataclass(frozen=True, slots=True)
class Segment:
    """What one call of the loop is asked to do."""

    out: Path
    length: int
    minutes: float
    cooldown: float
    device: str
    compiled: bool
    peak: float = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the weights of a run are."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Run:
    """One segment of training. Owns the weights and the optimizer; writes into its folder and nowhere else."""

    def __init__(self, recipe: Recipe, segment: Segment, tokenizer: Tokenizer, rows: RowMaker) -> None:
        self._recipe, self._segment, self._rows = recipe, segment, rows
        self._num_rows = recipe.tokens_per_step // segment.length
        self._progress = load_progress(segment.out)
        forget_lost_steps(segment.out, self._progress)
        torch.manual_seed(recipe.seed)
        self._noise = torch.Generator().manual_seed(recipe.seed + self._progress.step)
        self.model = Llama(replace(recipe.model, vocab_size=tokenizer.get_vocab_size()))
        self._load_weights()
        self.model.to(segment.device)
        self._optimizer = Optimizer(self.model.named_parameters(), recipe.optim)
        self.model.bfloat16()
        self._loss = model_module.weighted_loss
        self._stopped = False
        self._first_share = 0.0
        if segment.compiled:
            self._compile()

    def run(self, max_steps: int | None = None) -> Progress:
        """Train until the time or the steps are over or `stop` is called, then save; return how far the weights are."""
        start = saved = time.monotonic()
        first = self._progress
        losses: list[float] = []
        while (elapsed := time.monotonic() - start) < self._segment.minutes * 60 and not self._stopped:
            done = self._progress.step - first.step
            if done == max_steps:
                break
            scale = learning_rate_scale(done, elapsed, self._recipe.optim, self._segment)
            losses.append(self.step_on(self._rows.batch(self._num_rows, self._segment.length), scale))
            self._progress = Progress(
                self._progress.step + 1,
                self._progress.tokens + self._num_rows * self._segment.length,
                first.seconds + time.monotonic() - start,
            )
            if self._progress.step % LOG_EVERY == 0:
                self._log(losses, scale)
                losses.clear()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        if losses:
            self._log(losses, scale)
        self.save()
        return self._progress

    def stop(self) -> None:
        """Let `run` end after the step it is at; may be called by a signal's handler."""
        self._stopped = True

    def step_on(self, batch: Batch, scale: float) -> float:
        """Take one step on a batch with learning rates times `scale`; return its loss before the step."""
        ids, targets, weights = to_tensors(batch, self._segment.device)
        heaviest = self.heaviest(weights)
        hidden, shares = self.model.hidden_and_shares(ids)
        loss = self._loss(
            hidden.flatten(0, 1)[heaviest],
            self.model.embed_tokens.weight,
            targets.flatten()[heaviest],
            weights.flatten()[heaviest],
        )
        torch.autograd.backward(loss + self._push(shares))
        self._optimizer.step(scale)
        return float(loss.detach())

    def _push(self, shares: Tensor) -> Tensor:
        """Return what is added to the loss so that heads lean on the first token; note their shares for the log."""
        self._first_share = float(shares[1:].detach().mean())
        if not self._recipe.sink_share:
            return shares.new_zeros(())
        return self._recipe.sink_weight * sink_penalty(shares, self._recipe.sink_share)

    def heaviest(self, weights: Tensor) -> Tensor:
        """Return the positions whose losses are computed: a fixed number, by weight, and at random where equal.

        Three tokens in four are context that weighs next to nothing, and logits of all of them take a tenth of a step.
        """
        flat = weights.flatten()
        noise = torch.rand(flat.shape, generator=self._noise).to(flat.device)
        heaviest: Tensor = (flat + NOISE * noise).topk(round(self._recipe.loss_share * len(flat)), sorted=False).indices
        return heaviest

    def save(self) -> None:
        """Write the master weights and the progress."""
        masters = self._optimizer.load_masters()
        weights = {name: masters[id(p)].contiguous().cpu() for name, p in self.model.named_parameters()}
        save_file(weights, self._segment.out / "master.safetensors")
        (self._segment.out / "state.json").write_text(json.dumps(asdict(self._progress)) + "\n", encoding="utf-8")

    def _load_weights(self) -> None:
        path = self._segment.out / "master.safetensors"
        if path.exists():
            self.model.load_state_dict(load_file(path))

    def _compile(self) -> None:
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self._loss = torch.compile(model_module.weighted_loss, dynamic=False)

    def _log(self, losses: list[float], scale: float) -> None:
        entry = {
            "step": self._progress.step,
            "tokens": self._progress.tokens,
            "seconds": round(self._progress.seconds, 1),
            "length": self._segment.length,
            "lr_scale": round(scale, 4),
            "loss": round(sum(losses) / len(losses), 4),
            "first_share": round(self._first_share, 4),
        }
        if not math.isfinite(entry["loss"]):
            raise FloatingPointError(f"the loss is {entry['loss']} at step {entry['step']}; lower the learning rate")
        with (self._segment.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        print(entry, flush=True)


def to_tensors(batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, targets and weights of a batch on a device."""
    arrays = (batch.ids, batch.targets, batch.weights)
    ids, targets, weights = (torch.from_numpy(array.copy()).to(device) for array in arrays)
    return ids, targets, weights


def learning_rate_scale(step: int, elapsed_s: float, optim: OptimConfig, segment: Segment) -> float:
    """Return the factor of a warmup to `segment.peak`, and of a linear cooldown over the last `cooldown` minutes."""
    warm = min(1.0, (step + 1) / optim.warmup_steps)
    left_s = segment.minutes * 60 - elapsed_s
    return segment.peak * (min(warm, left_s / (segment.cooldown * 60)) if segment.cooldown else warm)


def load_progress(out: Path) -> Progress:
    """Return how far the run in a folder is; a new folder is at the start."""
    path = out / "state.json"
    return Progress(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Progress()


def forget_lost_steps(out: Path, progress: Progress) -> None:
    """Remove the log's entries of steps whose weights were never saved."""
    path = out / "log.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= progress.step), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with books/ and tinystories.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--length", type=int, default=1024, help="tokens per row")
    parser.add_argument("--minutes", type=float, required=True, help="wall-clock time of this segment")
    parser.add_argument("--cooldown", type=float, default=0.0, help="minutes of linear decay at the end")
    parser.add_argument("--peak", type=float, default=1.0, help="factor of both learning rates")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tokens-per-step", type=int, default=Recipe().tokens_per_step, help="rows times length")
    parser.add_argument("--size", type=float, help="difficulty of samples, 0..1; default: length / 1024")
    share = Recipe().mixture.streaming_share
    parser.add_argument("--streaming-share", type=float, default=share, help="share of samples that are StreamEval")
    parser.add_argument("--sink-token", action="store_true", help="begin every row with a learnable sink token")
    parser.add_argument("--sink-share", type=float, default=0.0, help="attention pushed to the first token; 0: none")
    parser.add_argument("--sink-weight", type=float, default=Recipe().sink_weight, help="of that push in the loss")
    parser.add_argument("--eager", action="store_true", help="do not compile (no C++ compiler is needed then)")
    return parser.parse_args()


def check_length(length: int, tokens_per_step: int, longest: int) -> None:
    """Raise Mistake where rows are longer than the model or a step, or too short for one line of a stream."""
    most = min(longest, tokens_per_step)
    if not SHORTEST <= length <= most:
        raise Mistake(f"--length {length} is out of range: {SHORTEST} to {most} tokens")


def stop_on_signals(run: Run) -> None:
    """Let Ctrl-C and SIGTERM end a run after its step; a second Ctrl-C interrupts."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        run.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"stopping after this step (Ctrl-C again: at once, unsaved)\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def main() -> None:
    """Run one segment; a mistake on the command line ends in a sentence."""
    arguments = parse_arguments()
    with in_one_sentence():
        run_segment(arguments)


def run_segment(arguments: argparse.Namespace) -> None:
    """Run one segment as the command line says."""
    check_data(arguments.data)
    check_length(arguments.length, arguments.tokens_per_step, Recipe().model.max_len)
    mixture = replace(Recipe().mixture, streaming_share=arguments.streaming_share)
    recipe = replace(
        Recipe(),
        mixture=mixture,
        tokens_per_step=arguments.tokens_per_step,
        sink_token=arguments.sink_token,
        sink_share=arguments.sink_share,
        sink_weight=arguments.sink_weight,
    )
    segment = Segment(
        out=arguments.out,
        length=arguments.length,
        minutes=arguments.minutes,
        cooldown=arguments.cooldown,
        device=arguments.device,
        compiled=not arguments.eager,
        peak=arguments.peak,
    )
    tokenizer = load_or_train_tokenizer(arguments.data, arguments.out, recipe)
    corpus = load_corpus(arguments.data, tokenizer, arguments.out)
    done = load_progress(arguments.out)
    rows = RowMaker(tokenizer, corpus, recipe.mixture, recipe.seed + done.step, recipe.sink_token)
    rows.set_size(min(1.0, arguments.length / FULL_SIZE_LEN) if arguments.size is None else arguments.size)
    run = Run(recipe, segment, tokenizer, rows)
    stop_on_signals(run)
    print(f"going on at step {done.step} in {segment.out}; a line every {LOG_EVERY} steps", flush=True)
    done = run.run()
    print(f"saved at step {done.step}: {done.tokens:,} tokens in {done.seconds:.0f} s")


if __name__ == "__main__":
    main()
