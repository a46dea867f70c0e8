"""A tiny tokenizer and corpus for the tests of the recipe: made from a few sentences, so that no data is needed."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.corpus import Corpus
from training.scoring import held_out_world
from training.tasks import TASKS, World
from training.tokenizer import encode, train_tokenizer

SENTENCES = (
    "The rain fell on the roof all night.",
    "Nobody in the house had slept well.",
    "A long road leads over the hills to the sea.",
    "The old clock in the hall struck nine.",
    "She put the letter back into the drawer.",
    "They talked about the harvest until it was dark.",
    "The horses were tired and the carts were slow.",
    "He looked out of the window and saw the snow.",
)
STORIES = ("Once upon a time there was a small boat on a lake. It was red. The boat had a friend. " * 3,) * 2


@pytest.fixture(scope="session")
def world() -> World:
    """A world of held-out names over the test's sentences."""
    return held_out_world(SENTENCES, STORIES, seed=3)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer learned from the test's sentences and samples of every task."""
    source = held_out_world(SENTENCES, STORIES, seed=1)
    tasks = [generate(source) for generate, _ in TASKS.values() for _ in range(10)]
    return train_tokenizer([*SENTENCES, *(f"{task.prompt} {task.answer}" for task in tasks)], vocab_size=600)


@pytest.fixture(scope="session")
def corpus(tokenizer: Tokenizer) -> Corpus:
    """A corpus that repeats the test's sentences."""
    tokens = np.array(encode(tokenizer, " ".join(SENTENCES)) * 20, dtype=np.uint16)
    return Corpus(tokens, STORIES, SENTENCES)
