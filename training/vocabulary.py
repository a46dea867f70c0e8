"""What the tokenizer is trained on: books, stories and samples of the tasks. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from training.config import Recipe
from training.corpus import book_paths, plain_sentences, read_book, read_stories
from training.names import Namer
from training.tasks import World, draw_task
from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

CHARS_PER_BOOK = 300_000
NUM_TASKS = 4_000


def load_or_train_tokenizer(data: Path, out: Path, recipe: Recipe) -> Tokenizer:
    """Return the tokenizer of a run's folder; a new run trains its own."""
    if not (out / "tokenizer.json").exists():
        print(f"training a tokenizer for {out} ...", flush=True)
        tokenizer = train_tokenizer(sample_texts(data, recipe.seed), recipe.model.vocab_size)
        save_tokenizer(tokenizer, out, recipe.model.max_len)
    return load_tokenizer(out)


def sample_texts(data: Path, seed: int) -> Iterator[str]:
    """Yield a stretch of every training book, the stories, and task samples in the share that they have in rows."""
    rng = Random(seed)
    texts = [read_book(path)[:CHARS_PER_BOOK] for path in book_paths(data, held_out=False)]
    stories = read_stories(data, held_out=False)
    yield from texts
    yield from stories
    sentences = tuple(sentence for text in texts for sentence in plain_sentences(text))
    world = World(rng, Namer(rng), sentences, stories)
    for _ in range(NUM_TASKS):
        task = draw_task(world)
        yield f"{task.prompt} {task.answer}"
