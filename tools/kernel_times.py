"""Where a forward's time goes, kernel by kernel: `python -m tools.kernel_times --model DIR [--batch 32]`.

Takes the program of a decode step from the real engine, then runs the operations of each kernel by themselves, and all
of them, in turn. Prints their medians in ms and their shares of the whole. What threads compute for themselves before
a product counts by itself, what is done behind it with it. Nothing is drawn: steps do not go on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

from kea.engine.base import Append, ContextSpec, CreateContext, Generate, Generated
from kea.engine.config import DecodingConfig, EngineConfig
from kea.engine.core import EngineCore
from kea.kernels.program import TEAM, Operation, Program
from kea.types import GenerateOptions, Sampling, Stopping

WARM_UP_STEPS = 4
NUM_TOKENS = 64
NOT_REPEATABLE = ("advance", "choose")
"""Kernels that make a step's arguments those of the next one."""


def create_core(options: argparse.Namespace) -> EngineCore:
    """Return a core whose contexts all decode, one token a step."""
    max_len = options.prefix + options.context + NUM_TOKENS + 32
    config = EngineConfig(
        options.model,
        device="cpu",
        max_model_len=max_len,
        max_num_seqs=options.batch,
        quantize=options.quantize,
        kv_cache_dtype=options.kv_cache_dtype,
        num_threads=options.threads,
        decoding=DecodingConfig(max_burst_s=0.0),
    )
    core = EngineCore.load(config)
    settings = GenerateOptions(Stopping(NUM_TOKENS, ignore_eos=True), Sampling(temperature=0.0))
    shared = tuple((place * 11) % 500 + 3 for place in range(options.prefix))
    for index in range(options.batch):
        core.handle(CreateContext(index, ContextSpec()))
        own = tuple((index * 37 + place) % 500 + 3 for place in range(options.context))
        core.handle(Append(index, shared + own))
        if index == 0 and options.prefix:
            while core.has_work:
                core.step()
    for index in range(options.batch):
        core.handle(Generate(index, index, settings))
    begun: set[int] = set()
    while len(begun) < options.batch:
        begun.update(event.generation_id for event in core.step() if isinstance(event, Generated))
    for _ in range(WARM_UP_STEPS):
        core.step()
    return core


def pieces_of(core: EngineCore, batch: int) -> tuple[dict[str, list[Operation]], dict[str, int], int]:
    """Return the operations of the step's program by kernel, its chunks by name, and its number of threads."""
    decoder: Any = core._runner._model
    shape, recording = next((s, r) for s, r in decoder._recordings.items() if s.num_rows == s.num_logits == batch)
    program = recording.pieces[0]
    found: dict[str, list[Operation]] = {"whole": []}
    for operation in program._operations:
        name = operation.kernel._function.__name__
        if name in NOT_REPEATABLE:
            continue
        found["whole"].append(operation)
        if operation.own is not None:
            own = Operation(operation.own.kernel, operation.own.arguments, shape.num_threads)
            found.setdefault(own.kernel._function.__name__, []).append(own)
        found.setdefault(name, []).append(replace(operation, own=None))
    return found, dict(program._chosen), shape.num_threads


def measure(core: EngineCore, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the times of each kernel's operations, in ms."""
    found, chosen, num_threads = pieces_of(core, options.batch)
    programs = {}
    for name, operations in found.items():
        open_names = {operation.name for operation in operations if operation.num_chunks is None}
        programs[name] = (Program(operations), {key: value for key, value in chosen.items() if key in open_names})
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, (program, num_chunks) in programs.items():
            start = time.perf_counter()
            TEAM.run(program, num_threads, **num_chunks)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kernel_times", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--prefix", type=int, default=0, help="tokens that all contexts share")
    parser.add_argument("--quantize")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    core = create_core(options)
    times = measure(core, options)
    medians = {name: statistics.median(found) for name, found in times.items()}
    parts = sum(value for name, value in medians.items() if name != "whole")
    for name, value in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{name:16}{value:9.3f} ms{value / medians['whole']:7.1%}  fastest {min(times[name]):.3f}")
    print(f"{'sum of the parts':16}{parts:9.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
