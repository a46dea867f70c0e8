"""Where a step's time goes outside the model: `python -m tools.overhead [--batch 32] [--steps 300] [--model idle]`.

Drives the real core, over a model that computes nothing (`idle`: its logits are made beforehand), so that what is left
is the engine's own work, and over a real one, which leaves the caches without the engine's code and data. Prints the
median time per step of each function, without the functions measured inside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.base import LayerCache, LayerSpec
from kea.engine.base import Append, ContextSpec, CreateContext, Generate
from kea.engine.config import DecodingConfig, EngineConfig, StepLimits
from kea.engine.core import EngineCore
from kea.kernels import draws
from kea.kernels.program import TEAM
from kea.models import Tokenizer
from kea.models.base import DrawOrder, ModelFacts, StepInput
from kea.models.shipped import require_embedded_model
from kea.types import GenerateOptions, Sampling, Stopping

PAGE_TOKENS = 16
PROMPT_TOKENS = 128
WARM_UP_STEPS = 40
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "any": Sampling(temperature=0.8, seed=1),
    "top_p": Sampling(temperature=0.8, top_p=0.9, seed=1),
    "top_k": Sampling(temperature=0.8, top_k=50, top_p=0.95, seed=1),
    "penalties": Sampling(temperature=0.0, presence_penalty=0.5, repetition_penalty=1.1),
}
# What is measured: the owner's path from the core, the method, and the row of the table it belongs to.
# Some belong to steps whose tokens the model draws, some to others.
KERNELS = "kernels"
STAGES = (
    ("", "step", "core: the loop's own"),
    ("_batcher", "plan", "batcher: plan"),
    ("_runner", "run", "runner: flattened input"),
    ("_runner", "decode", "runner: a batch that stands"),
    ("_runner._model", "forward", "model, around its kernels"),
    ("_runner._soundness", "begin", "runner: finite?"),
    ("_sampler", "begin", "sampler"),
    ("_batcher", "complete", "memory: commit"),
    ("_latency", "observe", "latency model"),
    ("_outputs", "take_all", "outputs: text, stops, chunks"),
    ("_outputs", "take_batch", "outputs: the same of a batch"),
)
TOTALS = {
    "all outside kernels": (KERNELS,),
    "without sampler and model": (KERNELS, "sampler", "model, around its kernels"),
}


class IdleModel:
    """A `DecoderModel` that computes nothing: every forward returns rows of logits made beforehand."""

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        layer = LayerSpec(1, 1, 8, 8, 1.0)
        self.can_draw = True
        self.facts = ModelFacts(
            "idle",
            "idle",
            vocab_size,
            1 << 16,
            (layer,),
            (),
            64,
            0,
            "cpu",
            "float32",
            "float32",
            "idle",
            batch_invariant=True,
        )
        self._logits = torch.randn(max_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return (LayerCache(torch.zeros(num_slots, 1, 8), torch.zeros(num_slots, 1, 8)),)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        return self._logits[: len(step.logit_rows)]

    def begin(self, step: StepInput, cache: tuple[LayerCache, ...], order: DrawOrder) -> IdleDecoding:
        return IdleDecoding(len(step.token_ids), self.facts.vocab_size)


class IdleDecoding:
    """A `Decoding` that computes nothing: every step draws the next ones of tokens made beforehand."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._tokens = np.random.default_rng(0).integers(3, vocab_size, (64, num_rows))
        self._num_done = 0

    def try_extend(self, row: int, index: int, page: int) -> bool:
        return True

    def run(self, num_rounds: int) -> NDArray[np.int64]:
        self._num_done += num_rounds
        return self._tokens[(self._num_done - num_rounds + np.arange(num_rounds)) % len(self._tokens)]


class Stopwatch:
    """Time by name, each without what was measured inside it."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []
        self._inner_s = [0.0]
        self._current: dict[str, float] = {}

    @contextmanager
    def wrapped(self, methods: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Measure methods of objects while the block runs: the owner, its method, the name."""
        before = [(owner, method, getattr(owner, method)) for owner, method, _ in methods]
        for owner, method, name in methods:
            setattr(owner, method, self._timed(getattr(owner, method), name))
        try:
            yield
        finally:
            for owner, method, whole in before:
                setattr(owner, method, whole)

    def lap(self) -> None:
        """End a step."""
        self._steps.append(self._current)
        self._current = {}

    def means_ms(self) -> dict[str, float]:
        """Return the means by name over all steps but the twentieth whose own work took longest: there something else
        ran. What happens in every eighth step counts as an eighth.
        """
        steps = sorted(self._steps, key=lambda step: sum(s for name, s in step.items() if name != KERNELS))
        steps = steps[: -(-19 * len(steps) // 20)]
        names = {name for step in steps for name in step}
        return {name: 1e3 * statistics.mean(step.get(name, 0.0) for step in steps) for name in names}

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            self._inner_s.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                taken = time.perf_counter() - start
                self._current[name] = self._current.get(name, 0.0) + taken - self._inner_s.pop()
                self._inner_s[-1] += taken

        return timed


def create_core(model: str, batch: int, vocab_size: int, num_steps: int) -> EngineCore:
    """Return a core over `model`: "idle", with this vocabulary, or what an engine can load; it computes no bursts."""
    max_len = PROMPT_TOKENS + num_steps + WARM_UP_STEPS + 2 * PAGE_TOKENS
    if model != "idle":
        decoding = DecodingConfig(max_burst_s=0.0)
        config = EngineConfig(model, device="cpu", max_model_len=max_len, max_num_seqs=batch, decoding=decoding)
        return EngineCore.load(config)
    limits = StepLimits(batch * (max_len // PAGE_TOKENS + 2), PAGE_TOKENS, max_len, batch, 8192)
    return EngineCore(IdleModel(vocab_size, batch), Tokenizer.load(require_embedded_model()), limits, time.perf_counter)


def fill(core: EngineCore, batch: int, num_tokens: int, sampling: Sampling) -> None:
    """Start `batch` generations, each with one stop string, and let them decode for a while."""
    options = GenerateOptions(Stopping(num_tokens, stop=("\n\nUser:",), ignore_eos=True), sampling)
    for index in range(batch):
        core.handle(CreateContext(index, ContextSpec()))
        length = PROMPT_TOKENS + index % PAGE_TOKENS  # not all contexts begin a page in the same step
        core.handle(Append(index, tuple((index * 37 + place) % 500 + 3 for place in range(length))))
        core.handle(Generate(index, index, options))
    for _ in range(WARM_UP_STEPS):
        core.step()


def measure(core: EngineCore, batch: int, num_steps: int, sampling: Sampling) -> tuple[float, dict[str, float]]:
    """Return the median step without a stopwatch inside, and the means of the stages, in ms."""
    steps = []
    fill(core, batch, 2 * num_steps + WARM_UP_STEPS, sampling)
    for _ in range(num_steps):
        start = time.perf_counter()
        core.step()
        steps.append(time.perf_counter() - start)
    watch = Stopwatch()
    with watch.wrapped(_stages_of(core)):
        for _ in range(num_steps - 1):
            core.step()
            watch.lap()
    return 1e3 * statistics.median(steps), watch.means_ms()


def _stages_of(core: EngineCore) -> list[tuple[Any, str, str]]:
    """Return what is measured: the owner, its method, and the row of the table."""
    stages: list[tuple[Any, str, str]] = [(TEAM, "run", KERNELS), (draws, "draw_rows", KERNELS)]
    for path, method, name in STAGES:
        owner: Any = core
        for part in filter(None, path.split(".")):
            owner = getattr(owner, part)
        stages.append((owner, method, name))
    return stages


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.overhead", description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sampling", choices=list(SAMPLINGS), action="append")
    parser.add_argument("--model", action="append", help="idle, or a model; several may be given")
    options = parser.parse_args(arguments)
    for model in options.model or ["idle", str(require_embedded_model())]:
        _print_table(model, options)
    return 0


def _print_table(model: str, options: argparse.Namespace) -> None:
    names = options.sampling or list(SAMPLINGS)
    found = {}
    for name in names:
        core = create_core(model, options.batch, options.vocab, 2 * options.steps)
        found[name] = measure(core, options.batch, options.steps, SAMPLINGS[name])
    what = f"vocabulary {options.vocab}" if model == "idle" else f"model {Path(model).name}"
    print(f"ms per step, of {options.steps}: {options.batch} rows, {what}")
    print(f"{'':36}" + "".join(f"{name:>11}" for name in names))
    for stage in [name for _, _, name in STAGES if any(name in stages for _, stages in found.values())]:
        print(f"{stage:36}" + "".join(f"{found[name][1].get(stage, 0.0):11.3f}" for name in names))
    for title, left_out in TOTALS.items():
        own = {name: sum(ms for stage, ms in found[name][1].items() if stage not in left_out) for name in names}
        print(f"{title:36}" + "".join(f"{own[name]:11.3f}" for name in names))
    print(f"{'whole step, nothing measured inside':36}" + "".join(f"{found[name][0]:11.3f}" for name in names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
