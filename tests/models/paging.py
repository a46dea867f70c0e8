"""Runs texts through a decoder's paged memory in a chosen schedule: what the engine does, without an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from kea.attention import Run, SequencePlan, StepPlan
from kea.models.base import DecoderModel, StepInput

PAGE_TOKENS = 4

Chunk = tuple[int, int, int]  # text, start, stop


def run_paged(
    model: DecoderModel, texts: Sequence[torch.Tensor], *, max_chunk: int, seed: int = 0
) -> list[torch.Tensor]:
    """Return the logits [N, V] of every token of every text, computed in mixed batches over scattered pages."""
    rng = random.Random(seed)
    num_pages = [-(-len(text) // PAGE_TOKENS) for text in texts]
    free = rng.sample(range(sum(num_pages) + 3), sum(num_pages) + 3)
    tables = [tuple(free.pop() for _ in range(count)) for count in num_pages]
    cache = model.create_cache((sum(num_pages) + 3) * PAGE_TOKENS)
    logits = [torch.empty(len(text), model.facts.vocab_size) for text in texts]
    for chunks in schedule([len(text) for text in texts], max_chunk, rng):
        rows = iter(model.forward(build_step(texts, tables, chunks), cache))
        for text, start, stop in chunks:
            for position in range(start, stop):
                logits[text][position] = next(rows)
    return logits


def schedule(lengths: Sequence[int], max_chunk: int, rng: random.Random) -> Iterator[list[Chunk]]:
    """Yield steps: each takes a chunk of random size from some of the unfinished texts, in random order."""
    done = [0] * len(lengths)
    while any(count < length for count, length in zip(done, lengths, strict=True)):
        chunks: list[Chunk] = []
        for text in rng.sample(range(len(lengths)), len(lengths)):
            stop = min(lengths[text], done[text] + rng.randint(1, max_chunk))
            if stop > done[text] and (not chunks or rng.random() < 0.8):
                chunks.append((text, done[text], stop))
                done[text] = stop
        if chunks:
            yield chunks


def build_step(texts: Sequence[torch.Tensor], tables: Sequence[tuple[int, ...]], chunks: Sequence[Chunk]) -> StepInput:
    """Return the step that computes `chunks` and asks for the logits of all their rows."""
    sequences, slots, row = [], [], 0
    for text, start, stop in chunks:
        sequences.append(SequencePlan(row, stop - start, start, tables[text], (Run(0, stop),)))
        slots += [tables[text][j // PAGE_TOKENS] * PAGE_TOKENS + j % PAGE_TOKENS for j in range(start, stop)]
        row += stop - start
    return StepInput(
        token_ids=torch.cat([texts[text][start:stop] for text, start, stop in chunks]),
        positions=torch.cat([torch.arange(start, stop) for _, start, stop in chunks]),
        logit_rows=torch.arange(row),
        plan=StepPlan(tuple(sequences), torch.tensor(slots), PAGE_TOKENS),
    )
