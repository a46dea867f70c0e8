"""Rows of tokens for training: tasks and language packed to one length, each token with its weight in the loss.

Also the place where others find the prompt builders (`training.prompts`). Knows nothing of models or optimisers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.config import Mixture
from training.corpus import Corpus
from training.names import Namer
from training.prompts import (
    choice_prompt,
    extract_prompt,
    merge_notes_prompt,
    merge_summaries_prompt,
    notes_prompt,
    qa_prompt,
    question_prompt,
    refine_notes_prompt,
    refine_summary_prompt,
    story_prompt,
    stream_line,
    stream_question,
    summarise_prompt,
)
from training.tasks import FARTHEST_LINE, Task, World, draw_task, stream_lines
from training.tokenizer import ASSISTANT, BOS, END, EOS, SINK, SYSTEM, USER, encode, token_id

__all__ = [
    "Batch",
    "RowMaker",
    "choice_prompt",
    "extract_prompt",
    "merge_notes_prompt",
    "merge_summaries_prompt",
    "notes_prompt",
    "qa_prompt",
    "question_prompt",
    "refine_notes_prompt",
    "refine_summary_prompt",
    "story_prompt",
    "stream_line",
    "stream_question",
    "summarise_prompt",
]

INSTRUCTIONS = (
    "You are a careful reader. Use only what is written.",
    "You are a helpful assistant.",
    "Answer with the exact words of the text.",
    "Read the text and answer shortly.",
    "You work in a team of readers. Be brief and exact.",
)


TokenisedSample = tuple[list[int], list[float]]
"""Token ids, and the weight of each in the loss."""
NUM_TRIES = 4  # new samples that are drawn to fill the rest of a row
MAX_PENDING = 16  # samples that wait for a row with room
TOKENS_PER_LINE = 22  # of a stream, with room for some questions in between


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text that is tokenised on its own, and the weight of its tokens in the loss."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length [B, T]; `targets` is `ids` shifted by one, `weights` belong to the targets."""

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class RowMaker:
    """Makes batches for ever from one seed. Lives as long as a training segment; owns the random stream."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, mixture: Mixture, seed: int, sink_token: bool) -> None:
        self._tokenizer, self._corpus, self._mixture = tokenizer, corpus, mixture
        self._rng = Random(seed)
        self._world = World(self._rng, Namer(self._rng), corpus.sentences, corpus.stories)
        self._start = [token_id(tokenizer, token) for token in ((SINK, BOS) if sink_token else (BOS,))]
        self._pending: list[TokenisedSample] = []

    def set_size(self, size: float) -> None:
        """Set the difficulty of the samples that follow, 0..1."""
        self._world = replace(self._world, size=size)
        self._pending.clear()

    def batch(self, rows: int, length: int) -> Batch:
        """Return `rows` rows of `length` tokens; every row begins with <|bos|> (after <|sink|>, where it is used)."""
        made = [self._row(length + 1) for _ in range(rows)]
        ids = np.array([ids for ids, _ in made], dtype=np.int64)
        weights = np.array([weights for _, weights in made], dtype=np.float32)
        return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        ids, weights = list(self._start), [0.0] * len(self._start)
        if self._rng.random() < self._mixture.language_share:
            self._fill_with_language(ids, weights, length)
            return ids, weights
        while sample := self._try_sample(length - len(ids), length):
            ids += sample[0]
            weights += sample[1]
        self._fill_with_language(ids, weights, length)
        return ids, weights

    def _try_sample(self, room: int, most: int) -> TokenisedSample | None:
        """Return a sample of at most `room` tokens: one that waited, or one of a few new ones; else None.

        A new one that is too long for now waits; one of more than `most` tokens fits no row and is dropped.
        """
        for i, waiting in enumerate(self._pending):
            if len(waiting[0]) <= room:
                return self._pending.pop(i)
        for _ in range(NUM_TRIES):
            sample = self._sample(most - len(self._start))
            if len(sample[0]) <= room:
                return sample
            if len(sample[0]) < most and len(self._pending) < MAX_PENDING:
                self._pending.append(sample)
        return None

    def _fill_with_language(self, ids: list[int], weights: list[float], length: int) -> None:
        """Fill a row up to `length` with stories or with one stretch of a book."""
        eos_id = token_id(self._tokenizer, EOS)
        if self._rng.random() < self._mixture.story_share:
            while len(ids) < length:
                ids += [*encode(self._tokenizer, self._rng.choice(self._corpus.stories)), eos_id]
        missing = max(0, length - len(ids))
        at = self._rng.randrange(len(self._corpus.books) - length)
        ids += self._corpus.books[at : at + missing].tolist()
        del ids[length:]
        weights += [1.0] * (length - len(weights))

    def _sample(self, most: int) -> TokenisedSample:
        if self._rng.random() < self._mixture.streaming_share:
            spans = streaming_spans(self._world, self._mixture, num_lines=most // TOKENS_PER_LINE)
            ids, weights = self._tokenise(spans)
            return ids[:most], weights[:most]  # a stream may end anywhere
        return self._tokenise(self._task_spans())

    def _tokenise(self, spans: Iterable[Span]) -> TokenisedSample:
        ids: list[int] = []
        weights: list[float] = []
        for span in spans:
            tokens = encode(self._tokenizer, span.text)
            ids += tokens
            weights += [span.weight] * len(tokens)
        return ids, weights

    def _task_spans(self) -> Iterator[Span]:
        if self._rng.random() < self._mixture.chat_share:
            turns = 1 + (self._rng.random() < 0.2)
            return chat_spans([draw_task(self._world) for _ in range(turns)], self._mixture, self._rng)
        return completion_spans(draw_task(self._world), self._mixture, self._rng)


def completion_spans(task: Task, mixture: Mixture, rng: Random) -> Iterator[Span]:
    """Yield a task as plain text; the space before the answer belongs to the prompt half of the time.

    An answer is learned to end with <|eos|>: the line break before a further question weighs nothing.
    """
    context, answer = mixture.context_weight, mixture.answer_weight
    lead = f"{rng.choice(INSTRUCTIONS)}\n" if rng.random() < 0.25 else ""
    before, after = (" ", "") if rng.random() < 0.5 else ("", " ")
    yield Span(lead, context)
    for i, (prompt, wanted) in enumerate(((task.prompt, task.answer), *task.follow_ups)):
        if i:
            yield Span("\n", 0.0)
        yield Span(prompt + before, context)
        yield Span(after + wanted, answer_weight(task, answer))
    yield Span(EOS, answer)


def chat_spans(tasks: list[Task], mixture: Mixture, rng: Random) -> Iterator[Span]:
    """Yield tasks as the turns of one chat, as the chat template writes them."""
    context, answer = mixture.context_weight, mixture.answer_weight
    if rng.random() < 0.25:
        yield Span(f"{SYSTEM}{rng.choice(INSTRUCTIONS)}{END}", context)
    for task in tasks:
        for prompt, wanted in ((task.prompt, task.answer), *task.follow_ups):
            yield Span(f"{USER}{prompt}{END}{ASSISTANT}", context)
            yield Span(wanted, answer_weight(task, answer))
            yield Span(END, answer)


def streaming_spans(world: World, mixture: Mixture, num_lines: int) -> Iterator[Span]:
    """Yield StreamEval as it runs: lines without end and, after the first of them, questions about earlier lines.

    What follows an answer weighs nothing: that answers end with <|eos|> is learned from the single questions.
    """
    lines = stream_lines(world, world.rng.choice((num_lines, world.at_most(num_lines, 8))))
    first, every = world.rng.randint(0, len(lines) - 4), world.rng.choice((1, 1, 2, 4))
    for i, (line, value) in enumerate(lines):
        yield Span(f"{stream_line(line, value)}\n", mixture.context_weight)
        if i >= first and (i - first) % every == 0:
            asked, wanted = lines[world.rng.randint(max(0, i + 1 - FARTHEST_LINE), i)]
            yield Span(f"{stream_question(asked)} ", mixture.context_weight)
            yield Span(f"<{wanted}>", mixture.answer_weight)
            yield Span("\n", 0.0)
    yield Span(EOS, 0.0)


def answer_weight(task: Task, weight: float) -> float:
    """Return the weight of an answer's tokens: the text of a story is language, not an exact answer."""
    return 1.0 if task.name == "story" else weight
