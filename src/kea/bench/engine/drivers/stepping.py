"""Measures any engine that takes requests and is stepped: what the drivers of OpenVINO and vLLM share.

Runs in the peers' own pythons: imports the standard library alone. Does not know which engine it is.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

_SLACK = 256  # tokens that no measurement reaches: requests end because they are cancelled
Request = tuple[float, list[int], int]


class SteppedEngine(Protocol):
    """An engine in this process. `salt` keeps a request's cache apart from others'."""

    def load(self, **arguments: Any) -> dict[str, Any]: ...

    def add(self, prompt: list[int], output_len: int, salt: str = "") -> int:
        """Take a request; return its key. Raises NotImplementedError for a salt where caches cannot be kept apart."""
        ...

    def step(self) -> dict[int, int]:
        """Run one step; return the new tokens by key, of those requests that have any."""
        ...

    def cancel(self, key: int) -> None: ...

    def has_work(self) -> bool: ...


class Driver:
    """Answers the orders of `kea bench engine` with one engine. Ends with its process."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine

    def load(self, **arguments: Any) -> dict[str, Any]:
        return self._engine.load(**arguments)

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt that was never seen, to its first token."""
        return {"seconds": self._time_to_token(prompt)}

    def warm(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt that was never seen, and the same again."""
        return {"cold_s": self._time_to_token(prompt), "warm_s": self._time_to_token(prompt)}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps that draw one token for each of the prompts' sequences."""
        return {"step_s": self._steps(prompts, [""] * len(prompts), steps, warmups)}

    def shared(
        self, *, prefix: list[int], groups: list[list[int]], prompts: list[list[Any]], strangers: list[list[int]],
        steps: int, warmups: int, share: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """Time steps of sequences under one prefix: `prompts` are pairs of a group and own tokens behind it."""
        whole = [prefix + groups[group] + own for group, own in prompts] + strangers
        salts = ["" if share else f"salt {number}" for number in range(len(whole))]
        if share:
            self._time_to_token([*prefix, prefix[0]])  # so that the prefix is there once before its users come
        return {"step_s": self._steps(whole, salts, steps, warmups)}

    def arrivals(self, requests: list[Request]) -> dict[str, Any]:
        """Serve requests `(offset_s, prompt, output_len)` at their times; return the latencies of each."""
        marks: dict[int, list[float]] = {index: [] for index in range(len(requests))}
        owners: dict[int, int] = {}
        waiting = sorted(marks, key=lambda index: requests[index][0])
        started = time.perf_counter()
        while waiting or self._engine.has_work():
            now = time.perf_counter() - started
            while waiting and requests[waiting[0]][0] <= now:
                index = waiting.pop(0)
                owners[self._engine.add(requests[index][1], requests[index][2])] = index
            if not self._engine.has_work():
                time.sleep(max(0.0, min(requests[waiting[0]][0] - now, 0.005)))
                continue
            for key, count in self._engine.step().items():
                marks[owners[key]] += [time.perf_counter() - started] * count
        return {"requests": [latencies(request, marks[index]) for index, request in enumerate(requests)]}

    def unloaded(self, requests: list[Request]) -> dict[str, Any]:
        """Serve the same, each after the last."""
        return {"requests": [row for one in requests for row in self.arrivals([one])["requests"]]}

    def _steps(self, prompts: Sequence[list[int]], salts: Sequence[str], steps: int, warmups: int) -> list[float]:
        with self._generating(prompts, salts) as step:
            for _ in range(warmups):
                step()
            return [step() for _ in range(steps)]

    @contextmanager
    def _generating(self, prompts: Sequence[list[int]], salts: Sequence[str]) -> Iterator[Callable[[], float]]:
        """Bring every prompt to its first token; gives a function that runs and times one step of all."""
        keys = [self._engine.add(prompt, _SLACK, salt) for prompt, salt in zip(prompts, salts, strict=True)]
        waiting = set(keys)
        try:
            while waiting:
                waiting -= self._engine.step().keys()

            def step() -> float:
                started = time.perf_counter()
                drawn = self._engine.step()
                seconds = time.perf_counter() - started
                if drawn != dict.fromkeys(keys, 1):
                    raise RuntimeError(f"a step gave {sum(drawn.values())} tokens for {len(keys)} sequences")
                return seconds

            yield step
        finally:
            for key in keys:
                self._engine.cancel(key)
            while self._engine.has_work():
                self._engine.step()

    def _time_to_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._engine.add(prompt, 1)
        seconds = 0.0
        while self._engine.has_work():
            if self._engine.step() and not seconds:
                seconds = time.perf_counter() - started
        return seconds


def latencies(request: Request, marks: list[float]) -> dict[str, float | None]:
    """Return what one request took, from the times of its tokens."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return {
        "offset_s": request[0],
        "ttft_s": marks[0] - request[0],
        "tpot_s": statistics.fmean(gaps) if gaps else None,
        "e2e_s": marks[-1] - request[0],
    }
