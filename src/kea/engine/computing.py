"""Begins what a plan asks for: runs the model, draws from its logits. Knows no commands, no text, no events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch

from kea.engine.draft import StepWork, WorkItem
from kea.engine.flight import DrawnRows, Flight
from kea.engine.rows import score_prompt, select_rows
from kea.engine.runner import DrawnAhead, Runner
from kea.engine.sampling import Draws, Sampler, SamplingRow
from kea.engine.state import ContextState
from kea.errors import EngineFault, KeaError

logger = logging.getLogger(__name__)


class StepComputer:
    """Computes steps on one runner with one sampler. Lives as long as its engine."""

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def begin(self, work: StepWork, ahead: DrawnAhead | None) -> Flight:
        """Run the model and choose each item's first token; on a device both are on their way then."""
        rows = select_rows(work)
        logits, find_unsound = self._runner.run(work, rows.logit_rows, ahead)
        for item, first, stop in rows.prompts:
            score_prompt(item, logits[first:stop])
        refused, drawing, draws = self._draw(logits, rows.draws)
        behind = partial(self._draw_behind, logits, rows.draws)
        return Flight(work, work.items, find_unsound, behind, refused, draws, drawing)

    def _draw(
        self, logits: torch.Tensor, draws: Sequence[tuple[WorkItem, int]]
    ) -> tuple[DrawnRows, list[WorkItem], Draws]:
        """Begin to draw a token from each item's row of the logits; those whose constraint fails get that error."""
        refused: DrawnRows = []
        items, specs, indices = [], [], []
        for item, index in draws:
            spec = _sampling_row(item.context)
            if isinstance(spec, KeaError):
                refused.append((item, spec))
            else:
                specs.append(spec)
                items.append(item)
                indices.append(index)
        return refused, items, self._sampler.begin(logits, specs, indices)

    def _draw_behind(
        self, logits: torch.Tensor, rows: Sequence[tuple[WorkItem, int]], hits: Sequence[WorkItem], num_drawn: int
    ) -> DrawnRows:
        """Draw as `begin` does from the rows behind `num_drawn` guesses; a fault of it is a fault of these requests
        alone, whose pages are already right.
        """
        found = set(map(id, hits))
        draws = [(item, index + num_drawn) for item, index in rows if id(item) in found]
        try:
            refused, drawing, begun = self._draw(logits, draws)
            return refused + list(zip(drawing, begun.finish(), strict=True))
        except Exception as error:  # noqa: BLE001 - the requests' fault is told to these requests
            return [(item, as_fault(error)) for item, _ in draws]


def _sampling_row(context: ContextState) -> SamplingRow | KeaError:
    """Return what a context's next token is drawn with, or why none can be."""
    assert context.generation is not None, "a row draws for a context that generates nothing"
    try:
        return context.generation.row(context.num_unknown)
    except Exception as error:  # noqa: BLE001 - one request's fault is told to that request
        return as_fault(error)


def as_fault(error: Exception) -> KeaError:
    """Return what a request is told of an error."""
    if isinstance(error, KeaError):
        return error
    logger.error("a request failed", exc_info=error)
    return EngineFault(f"The engine failed at this request: {error!r}.")
