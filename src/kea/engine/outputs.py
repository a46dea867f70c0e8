"""Drawn tokens become output: each goes to its generation, and what is certain of its text is told. Knows no model.

A token that was guessed lets another be drawn in the same step; those that a model has drawn for a batch that stands
are taken together, where nothing about them is to be looked at. A fault at one output fails that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kea.engine.base import Generated
from kea.engine.batcher import Batcher
from kea.engine.computing import as_fault
from kea.engine.contexts import ContextTable
from kea.engine.counters import Counters
from kea.engine.draft import WorkItem
from kea.engine.flight import DrawnRows
from kea.engine.sampling import Drawn, record
from kea.engine.standing import DecodeBatch
from kea.engine.state import ContextState
from kea.errors import KeaError
from kea.models.base import SPOILT_TOKEN
from kea.types import Chunk, Finish

DrawBehind = Callable[[Sequence[WorkItem], int], DrawnRows]


@dataclass(frozen=True, slots=True)
class End:
    """The end of a context's output in a step: what its last chunk says, or an error."""

    context: ContextState
    outcome: Finish | KeaError


class Outputs:
    """Gives drawn tokens to generations. Lives as long as its engine.

    `spoil` wipes what a step has written for an item that is not finite, and returns the error of it.
    """

    def __init__(
        self, contexts: ContextTable, batcher: Batcher, counters: Counters, spoil: Callable[[WorkItem], KeaError]
    ) -> None:
        self._contexts = contexts
        self._batcher = batcher
        self._counters = counters
        self._spoil = spoil
        self._places: dict[int, int] = {}  # by generation: where the step's events have its chunk

    # Steps in which the sampler draws

    def take_all(self, drawn: DrawnRows, draw_behind: DrawBehind, now: float) -> None:
        """Take what was drawn. Where that was guessed, the row behind it was computed for what is in fact the context:
        draw from it as the next step would have, and go on until a guess was wrong or the output ends.
        """
        num_drawn = 0
        while drawn:
            hits = [item for item, it in drawn if item.context.error is None and self._take(item, it, num_drawn, now)]
            num_drawn += 1
            drawn = draw_behind(hits, num_drawn) if hits else []
        self._places.clear()

    def _take(self, item: WorkItem, drawn: Drawn | KeaError, num_drawn: int, now: float) -> bool:
        """Give an item's next token to its generation, behind `num_drawn` others of this step; end the generation where
        it stops. Return whether the token was guessed, so that another can be drawn.
        """
        context = item.context
        chunk = self._try_take(context, drawn, now)
        if isinstance(chunk, KeaError):
            self._contexts.fail(context, chunk)
            return False
        assert context.generation is not None
        is_hit = False
        if item.guesses:
            self._tell(context.generation.generation_id, chunk)
            is_hit = num_drawn < len(item.guesses) and item.guesses[num_drawn] == chunk.token_ids[0]
            self._counters.num_accepted_tokens += is_hit
        else:
            self._contexts.events.append(Generated(context.generation.generation_id, chunk))
        if chunk.finish is not None:
            self._end(End(context, chunk.finish))
            return False
        if is_hit:  # only now: an output that ended keeps what it would have kept without guesses
            self._batcher.complete(WorkItem(context, item.stop + num_drawn, item.stop + num_drawn + 1, draws=False))
        return is_hit

    def _tell(self, generation_id: int, chunk: Chunk) -> None:
        """Emit a chunk, as one with what the generation has said before in this step."""
        events = self._contexts.events
        place = self._places.setdefault(generation_id, len(events))
        if place == len(events):
            events.append(Generated(generation_id, chunk))
        else:
            said = events[place]
            assert isinstance(said, Generated), "another event stands where a generation's was"
            events[place] = Generated(generation_id, said.chunk.followed_by(chunk))

    # Steps of a batch that stands

    def take_batch(self, batch: DecodeBatch, drawn: Sequence[Sequence[int]], now: float) -> list[End]:
        """Take what a model has drawn [R][rounds]; return the outputs that ended, which still have their generations.

        Of an output that ends, what was drawn behind its end is forgotten.
        """
        events = self._contexts.events
        ends: list[End] = []
        num_rounds = batch.num_rounds
        num_quick = 0
        may_end = batch.num_done + num_rounds >= batch.num_left
        rows = zip(batch.trackers, batch.lanes, batch.token_lists, batch.generation_ids, drawn, strict=True)
        for row, (tracker, lane, tokens, generation_id, ids) in enumerate(rows):
            try:
                chunk = lane[ids[0]] if num_rounds == 1 else _join([lane[token_id] for token_id in ids], ids)
            except KeyError:
                chunk = None
            if chunk is None or may_end or not tracker.is_quiet:
                ends += self._take_row(batch, row, ids, now)
                continue
            tokens.extend(ids)
            tracker.num_tokens += num_rounds
            num_quick += 1
            events.append(Generated(generation_id, chunk))
        self._counters.generation_tokens += num_quick * num_rounds
        return ends

    def end_all(self, ends: Sequence[End]) -> None:
        """Close the generations of outputs that ended, and let run what waited behind them."""
        for end in ends:
            self._end(end)

    def _take_row(self, batch: DecodeBatch, row: int, drawn: Sequence[int], now: float) -> list[End]:
        """Take a row's tokens one by one; return its end, if it came."""
        context = batch.contexts[row]
        generation = context.generation
        assert generation is not None
        self._batcher.settle_context(context)
        if SPOILT_TOKEN in drawn:
            return [End(context, self._spoil(batch.written(row)))]
        said: Chunk | None = None
        end: End | None = None
        for token_id in drawn:
            self._batcher.complete(WorkItem(context, len(context.tokens) - 1, len(context.tokens), draws=True))
            chunk = self._try_take(context, record(generation.sampling, token_id), now)
            if isinstance(chunk, KeaError):
                end = End(context, chunk)
                break
            said = chunk if said is None else said.followed_by(chunk)
            if chunk.finish is not None:
                end = End(context, chunk.finish)
                break
        if said is not None:
            self._contexts.events.append(Generated(generation.generation_id, said))
        return [] if end is None else [end]

    # Of both

    def _try_take(self, context: ContextState, drawn: Drawn | KeaError, now: float) -> Chunk | KeaError:
        """Give a token to its generation; return what is to be told, or why the request fails."""
        assert context.generation is not None, "a token was drawn for a context that generates nothing"
        if isinstance(drawn, KeaError):
            return drawn
        try:
            chunk = context.generation.take(context, drawn, now)
        except Exception as error:  # noqa: BLE001 - one request's fault is told to that request
            return as_fault(error)
        self._counters.generation_tokens += 1
        return chunk

    def _end(self, end: End) -> None:
        context, generation = end.context, end.context.generation
        if isinstance(end.outcome, KeaError):
            self._contexts.fail(context, end.outcome)
            return
        assert generation is not None
        self._counters.finished(end.outcome.reason.value)
        self._batcher.lengths.note(generation.tracker.num_tokens)
        self._contexts.end_generation(context)


def _join(chunks: Sequence[Chunk], token_ids: Sequence[int]) -> Chunk:
    return Chunk(tuple(token_ids), "".join([chunk.text for chunk in chunks]))
