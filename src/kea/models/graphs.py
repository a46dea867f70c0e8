"""Small steps replayed as captured CUDA graphs, so that a decode step costs the GPU's time and not Python's.

Owns the graphs, one per size and kind of step, and the fixed tensors that they read. How a graph is captured is passed
in, so that everything else is tested without a GPU. Knows no requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kea.attention.base import CapturableBackend, LayerCache, PreparedPlan, StaticPlan, StaticShape, StepPlan
from kea.models.base import ModelFacts, StepInput

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
MAX_TABLE_ENTRIES = 1 << 22
NO_SLOT = -1


class GraphDecoder(Protocol):
    """A decoder whose forward can be captured: one that reads nothing but its tensors and its prepared plan."""

    @property
    def facts(self) -> ModelFacts: ...

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]: ...

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor: ...

    def compute(self, step: StepInput, prepared: PreparedPlan, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        """Run the layers over the step's tensors with a plan that is prepared already; never waits for the device.
        The logits [R, V] are in the model's type or fp32.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recording:
    """A captured computation: `replay` runs it again on what its tensors hold by then, into the same `output`."""

    output: torch.Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """Runs a computation once or more and captures it."""

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Recording: ...


class CudaRecorder:
    """Captures CUDA graphs that share one pool of memory: only one of them runs at a time, and its output is read
    before the next one runs.
    """

    def __init__(self) -> None:
        stream: Any = torch.cuda.Stream
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = stream()  # one for all: libraries keep memory for each stream that they were used on

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Recording:
        aside = self._aside
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()  # kernels are compiled and libraries set up outside of the capture
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = compute()
        return Recording(output, graph.replay)


class StepGraph:
    """One captured step of a fixed number of rows, some of them padding. Lives as long as the cache it writes."""

    def __init__(self, step: StepInput, plan: StaticPlan, recording: Recording) -> None:
        self._step = step
        self._plan = plan
        self._recording = recording

    @classmethod
    def capture(
        cls,
        decoder: GraphDecoder,
        backend: CapturableBackend,
        shape: StaticShape,
        memory: tuple[tuple[LayerCache, ...], torch.Tensor],
        recorder: Recorder,
    ) -> StepGraph:
        """Capture a step of `shape` in which nothing is to do yet; `memory`: the cache, and what its logits go into, of
        at least as many rows [R, V] fp32.
        """
        cache, logits = memory[0], memory[1][: shape.num_rows]
        facts = decoder.facts

        def column(fill: int) -> torch.Tensor:
            return torch.full((shape.num_rows,), fill, dtype=torch.int64, device=facts.device)

        slots = column(NO_SLOT)
        step = StepInput(column(0), column(0), column(0), StepPlan((), slots, shape.page_tokens))
        plan = backend.create_static(shape, facts.layers, getattr(torch, facts.dtype), slots)
        return cls(step, plan, recorder(lambda: logits.copy_(decoder.compute(step, plan, cache))))

    def try_replay(self, step: StepInput) -> torch.Tensor | None:
        """Run a step of at most as many rows; return its logits [R, V], valid until the next replay, or None where its
        plan has no room here.
        """
        if not self._plan.try_fill(step.plan):
            return None
        num_rows, num_logits = step.token_ids.shape[0], step.logit_rows.shape[0]
        own = self._step
        own.token_ids[:num_rows].copy_(step.token_ids)
        own.positions[:num_rows].copy_(step.positions)
        own.logit_rows[:num_logits].copy_(step.logit_rows)
        own.plan.slots[:num_rows].copy_(step.plan.slots)
        own.plan.slots[num_rows:].fill_(NO_SLOT)
        self._recording.replay()
        return self._recording.output[:num_logits]


class GraphedDecoder:
    """A `DecoderModel` that replays steps of few rows and has its decoder run all others.

    A graph belongs to one cache: `capture` makes those of a new one and drops the old. Where a decoder cannot be
    captured (its code waits for the device), that is logged once, and every step is run by the decoder itself.
    """

    def __init__(
        self, decoder: GraphDecoder, backend: CapturableBackend, recorder: Recorder, sizes: Sequence[int] = SIZES
    ) -> None:
        self._decoder = decoder
        self._backend = backend
        self._recorder = recorder
        self._sizes = tuple(sorted(sizes))
        self._graphs: dict[tuple[int, bool], StepGraph] = {}
        self._cache: tuple[LayerCache, ...] | None = None
        self.num_replayed = 0
        self.num_computed = 0

    @property
    def facts(self) -> ModelFacts:
        return self._decoder.facts

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return self._decoder.create_cache(num_slots)

    def capture(self, cache: tuple[LayerCache, ...], page_tokens: int, max_rows: int) -> None:
        """Capture the steps of up to `max_rows` rows over this cache, the largest first: the others fit its memory."""
        self._graphs.clear()
        self._cache = cache
        wanted = [size for size in self._sizes if size < max_rows]
        wanted += [size for size in self._sizes if size >= max_rows][:1]
        facts = self.facts
        # one for all graphs: each would keep its own as long as it lives, more than 1 GB with 128,000 words
        logits = torch.empty(wanted[-1], facts.vocab_size, dtype=torch.float32, device=facts.device)
        pages_of_one = -(-facts.max_len // page_tokens)
        try:
            for size in reversed(wanted):
                num_pages = min(size * pages_of_one, MAX_TABLE_ENTRIES)
                for is_simple in (False, True):
                    shape = StaticShape(size, num_pages, page_tokens, is_simple)
                    graph = StepGraph.capture(self._decoder, self._backend, shape, (cache, logits), self._recorder)
                    self._graphs[size, is_simple] = graph
        except RuntimeError as error:
            self._graphs.clear()
            logger.warning(
                "%s cannot be captured as a CUDA graph, each step launches its kernels one by one: %s",
                self.facts.name,
                error,
            )

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        logits = self._try_replay(step) if cache is self._cache else None
        if logits is not None:
            self.num_replayed += 1
            return logits
        self.num_computed += 1
        return self._decoder.forward(step, cache)

    def _try_replay(self, step: StepInput) -> torch.Tensor | None:
        num_rows = step.token_ids.shape[0]
        size = next((size for size in self._sizes if size >= num_rows), None)
        graph = None if size is None else self._graphs.get((size, self._backend.is_simple(step.plan)))
        return None if graph is None else graph.try_replay(step)
