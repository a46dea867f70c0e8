"""Drives Kea's engine by its core, as its loop does, and times whole steps: planning, model, sampling, text, events."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kea
from kea.engine.base import Append, ClearCache, ContextSpec, CreateContext, Free, Generate, Generated, GenerationFailed
from kea.engine.config import EngineConfig
from kea.engine.core import EngineCore
from kea.engine.sampling import Sampler
from kea.models.lean.decoder import LeanDecoding
from kea.types import GenerateOptions, Sampling, Speculation, Stopping

_SLACK = 128  # tokens beyond those measured, at most (others begin, a burst ends): contexts are freed, not finished
_GPU_STEP_TOKENS = 8192  # few steps until all of many long prompts decode
Request = tuple[float, list[int], int]


class Driver:
    """One engine in this process. Ends with it."""

    def __init__(self) -> None:
        self._core: EngineCore | None = None
        self._ids = itertools.count(1)
        self._drawn: list[int] = []  # tokens of each context of the last measurement

    @property
    def core(self) -> EngineCore:
        assert self._core is not None, "an order came before load"
        return self._core

    def load(
        self, model: str, threads: int, kv_bytes: int, max_len: int, quantize: str | None = None,
        *, kv_cache_dtype: str = "auto", device: str = "cpu", **_: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Load the model with `kv_bytes` of pages; `quantize` and `kv_cache_dtype` as in `EngineConfig`."""
        limits = {"num_threads": threads, "kv_memory_bytes": kv_bytes, "max_model_len": max_len}
        fields: dict[str, Any] = {"model": model, "device": device, "kv_cache_dtype": kv_cache_dtype, **limits}
        if device != "cpu":
            fields["max_num_batched_tokens"] = _GPU_STEP_TOKENS
        if quantize is not None:
            fields["quantize"] = quantize
        self._core = EngineCore.load(EngineConfig(**fields))
        info = self._core.info
        note = f"arithmetic {info.dtype}, KV in {info.kv_cache_dtype}, attention {info.backend}"
        return {"version": f"kea {kea.__version__}", "note": note}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt on an empty cache, to its first token."""
        self.core.handle(ClearCache())
        return {"seconds": self._time_to_token(prompt)}

    def warm(self, prompt: list[int]) -> dict[str, Any]:
        """Time the same prompt on an empty cache and on one that has it."""
        self.core.handle(ClearCache())
        return {"cold_s": self._time_to_token(prompt), "warm_s": self._time_to_token(prompt)}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps that draw one token for each of the prompts' contexts; of a burst, each round is one."""
        with self._generating(prompts, warmups + steps) as step:
            _run_steps(step, warmups)
            return {"step_s": _run_steps(step, steps)}

    def shared(
        self, *, prefix: list[int], groups: list[list[int]], prompts: list[list[Any]], strangers: list[list[int]],
        steps: int, warmups: int, share: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """Time steps of contexts under one prefix: `prompts` are pairs of a group and own tokens behind it.

        Without `share` each context has a tenant of its own: nothing is shared between tenants.
        """
        self.core.handle(ClearCache())
        whole = [prefix + groups[group] + own for group, own in prompts] + strangers
        tenants = ["" if share else f"tenant {number}" for number in range(len(whole))]
        with self._generating(whole, warmups + steps, tenants) as step:
            _run_steps(step, warmups)
            times = _run_steps(step, steps)
            memory, size = self.core.snapshot().memory, self.core.info.page_tokens
        self.core.handle(ClearCache())
        heads = [len(prefix), *(len(prefix) + len(tokens) for tokens in groups)]
        lengths = [len(prompt) + drawn for prompt, drawn in zip(whole, self._drawn, strict=True)]
        num_pages = heads[0] // size + sum(head // size - heads[0] // size for head in heads[1:])
        owners = [heads[1 + group] for group, _ in prompts] + [0] * len(strangers)
        num_pages += sum(-(-length // size) - head // size for length, head in zip(lengths, owners, strict=True))
        return {"step_s": times, "kv_tokens": memory.num_used * size, "kv_once_tokens": num_pages * size}

    def overhead(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps, and within them the model's forward pass and the sampler."""
        spent = {"model": 0.0, "sampler": 0.0}
        model = self.core._model
        with (
            _timed(type(model), "forward", spent, "model"),
            _timed(LeanDecoding, "run", spent, "model"),
            _timed(Sampler, "begin", spent, "sampler"),
            self._generating(prompts, warmups + steps) as step,
        ):
            _run_steps(step, warmups)
            rows: list[dict[str, float]] = []
            while len(rows) < steps:
                spent.update(model=0.0, sampler=0.0)
                times = step()
                parts = {f"{name}_s": seconds / len(times) for name, seconds in spent.items()}
                rows += [{"step_s": seconds, **parts} for seconds in times]
        return {key: [row[key] for row in rows[:steps]] for key in ("step_s", "model_s", "sampler_s")}

    def arrivals(self, requests: list[Request]) -> dict[str, Any]:
        """Serve requests `(offset_s, prompt, output_len)` at their times; return the latencies of each."""
        self.core.handle(ClearCache())
        marks: dict[int, list[float]] = {}
        owners: dict[int, tuple[int, int]] = {}
        waiting = sorted(range(len(requests)), key=lambda index: requests[index][0])
        started = time.perf_counter()
        while waiting or self.core.has_work:
            now = time.perf_counter() - started
            while waiting and requests[waiting[0]][0] <= now:
                index = waiting.pop(0)
                context_id, generation_id = self._begin(requests[index][1], requests[index][2])
                owners[generation_id], marks[index] = (index, context_id), []
            if not self.core.has_work:
                time.sleep(max(0.0, min(requests[waiting[0]][0] - now, 0.005)))
                continue
            for generated in self._step():
                at = time.perf_counter() - started
                index, context_id = owners[generated.generation_id]
                marks[index] += [at] * len(generated.chunk.token_ids)
                if generated.chunk.finish is not None:
                    self.core.handle(Free(context_id))
        return {"requests": [_latencies(requests[index], marks[index]) for index in range(len(requests))]}

    def unloaded(self, requests: list[Request]) -> dict[str, Any]:
        """Serve the same, each after the last."""
        return {"requests": [row for one in requests for row in self.arrivals([one])["requests"]]}

    def steady(self, prompts: list[list[int]], output_len: int, num_running: int) -> dict[str, Any]:
        """Keep so many of the prompts running to their ends; return how well the latency model predicted the steps."""
        self.core.handle(ClearCache())
        before = self.core.snapshot().latency.num_samples
        left = list(prompts)
        running: dict[int, int] = {}
        while left or running:
            while left and len(running) < num_running:
                context_id, generation_id = self._begin(left.pop(), output_len)
                running[generation_id] = context_id
            for one in self._step():
                if one.chunk.finish is not None:
                    self.core.handle(Free(running.pop(one.generation_id)))
        latency = self.core.snapshot().latency
        return {"median_error_ratio": latency.median_error_ratio, "num_steps": latency.num_samples - before}

    def lookup(self, prompts: list[list[int]], output_len: int, num_guesses: int) -> dict[str, Any]:
        """Time the outputs of the prompts from the step behind their first tokens, without guesses and with them, twice
        in turn; count the guesses that were verified, those that were right, and the outputs that stayed as they were.
        """
        seconds: dict[int, list[float]] = {0: [], num_guesses: []}
        pairs: list[list[list[list[int]]]] = []
        before = self.core.snapshot()
        for _ in range(2):
            pairs.append([])
            for number in (0, num_guesses):
                elapsed, outputs = self._outputs(prompts, output_len, number)
                seconds[number].append(elapsed)
                pairs[-1].append(outputs)
        after = self.core.snapshot()
        same = min(sum(one == other for one, other in zip(*pair, strict=True)) for pair in pairs)
        return {
            "plain_s": seconds[0],
            "lookup_s": seconds[num_guesses],
            "num_guesses": after.num_draft_tokens - before.num_draft_tokens,
            "num_right": after.num_accepted_tokens - before.num_accepted_tokens,
            "same_ratio": same / len(prompts),
        }

    def _outputs(self, prompts: list[list[int]], output_len: int, num_guesses: int) -> tuple[float, list[list[int]]]:
        """Run the prompts to their ends; return the seconds since all had a token, and what they became."""
        self.core.handle(ClearCache())
        owners = [self._begin(prompt, output_len, num_guesses=num_guesses) for prompt in prompts]
        tokens: dict[int, list[int]] = {generation_id: [] for _, generation_id in owners}
        started = None
        while any(len(one) < output_len for one in tokens.values()):
            for generated in self._step():
                tokens[generated.generation_id] += generated.chunk.token_ids
            if started is None and all(tokens.values()):
                started = time.perf_counter()
        elapsed = time.perf_counter() - started if started is not None else 0.0
        for context_id, _ in owners:
            self.core.handle(Free(context_id))
        return elapsed, list(tokens.values())

    @contextmanager
    def _generating(
        self, prompts: Sequence[list[int]], num_steps: int, tenants: Sequence[str] | None = None
    ) -> Iterator[Callable[[], list[float]]]:
        """Bring a context for each prompt to its first token; gives a function that runs one step of all and returns
        its time, or of a burst as many equal parts of it as there were rounds.

        Until there are `num_steps` of them. Much longer outputs must not be asked for: by the forecast of their needs,
        contexts would wait for others to end.
        """
        tenants = tenants or [""] * len(prompts)
        most = num_steps + _SLACK
        begun = [self._begin(prompt, most, tenant) for prompt, tenant in zip(prompts, tenants, strict=True)]
        counts = {generation_id: 0 for _, generation_id in begun}

        def step() -> list[float]:
            started = time.perf_counter()
            generated = self._step()
            seconds = time.perf_counter() - started
            for one in generated:
                counts[one.generation_id] += len(one.chunk.token_ids)
            rounds = {len(one.chunk.token_ids) for one in generated}
            if is_measuring and (len(generated) != len(prompts) or len(rounds) != 1):
                raise RuntimeError(
                    f"a step gave {len(generated)} chunks of {rounds} tokens for {len(prompts)} contexts"
                )
            count = max(rounds, default=1)
            return [seconds / count] * count

        is_measuring = False
        while not all(counts.values()):
            step()
        is_measuring = True
        try:
            yield step
        finally:
            self._drawn = list(counts.values())
            for context_id, _ in begun:
                self.core.handle(Free(context_id))
            while self.core.has_work:
                self.core.step()

    def _time_to_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        context_id, _ = self._begin(prompt, 1)
        while not self._step():
            pass
        seconds = time.perf_counter() - started
        self.core.handle(Free(context_id))  # its full pages stay in the prefix cache
        return seconds

    def _begin(self, prompt: list[int], output_len: int, tenant: str = "", num_guesses: int = 0) -> tuple[int, int]:
        context_id, generation_id = next(self._ids), next(self._ids)
        guessing = Speculation(num_guesses)
        options = GenerateOptions(
            Stopping(output_len, ignore_eos=True), Sampling(temperature=0.0), speculation=guessing
        )
        self.core.handle(CreateContext(context_id, ContextSpec(tenant)))
        self.core.handle(Append(context_id, tuple(prompt)))
        self.core.handle(Generate(context_id, generation_id, options))
        return context_id, generation_id

    def _step(self) -> list[Generated]:
        events = self.core.step()
        for event in events:
            if isinstance(event, GenerationFailed):
                raise event.error
        return [event for event in events if isinstance(event, Generated)]


def _run_steps(step: Callable[[], list[float]], count: int) -> list[float]:
    """Run so many steps, and to the end of the burst that has the last of them; return their times."""
    times: list[float] = []
    while len(times) < count:
        times += step()
    return times[:count]


@contextmanager
def _timed(owner: type, name: str, spent: dict[str, float], key: str) -> Iterator[None]:
    """Add up the time spent in a method while the block runs."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[key] += time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, method)


def _latencies(request: Request, marks: list[float]) -> dict[str, float | None]:
    gaps = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return {
        "offset_s": request[0],
        "ttft_s": marks[0] - request[0],
        "tpot_s": statistics.fmean(gaps) if gaps else None,
        "e2e_s": marks[-1] - request[0],
    }


def create_driver() -> Driver:
    """Return the driver of a process of its own: what Kea logs there below an error is nobody's."""
    logging.getLogger("kea").setLevel(logging.ERROR)
    return Driver()
