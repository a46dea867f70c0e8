"""Rows are deterministic, full, begin as inference begins, and weigh exactly the answers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.config import Mixture
from training.corpus import Corpus
from training.data import RowMaker
from training.tokenizer import BOS, EOS, SINK, token_id

LENGTH = 512
LINE = re.compile(r"line (\d+): REGISTER_CONTENT is <(\d+)>")
ASKED = re.compile(r"in line (\d+)\?\nAnswer: <(\d+)>")


def make_rows(tokenizer: Tokenizer, corpus: Corpus, seed: int, sink_token: bool = False) -> RowMaker:
    return RowMaker(tokenizer, corpus, Mixture(language_share=0.0), seed, sink_token)


def test_a_seed_gives_the_same_batches(tokenizer: Tokenizer, corpus: Corpus) -> None:
    first, second = (make_rows(tokenizer, corpus, seed=5) for _ in range(2))
    for _ in range(3):
        one, other = first.batch(4, LENGTH), second.batch(4, LENGTH)
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.weights, other.weights)
    assert not np.array_equal(one.ids, make_rows(tokenizer, corpus, seed=6).batch(4, LENGTH).ids)


@pytest.mark.parametrize("sink_token", [False, True])
def test_rows_are_full_and_begin_with_bos(tokenizer: Tokenizer, corpus: Corpus, sink_token: bool) -> None:
    batch = make_rows(tokenizer, corpus, 5, sink_token).batch(6, LENGTH)
    start = [token_id(tokenizer, token) for token in ((SINK, BOS) if sink_token else (BOS,))]
    assert batch.ids.shape == batch.targets.shape == batch.weights.shape == (6, LENGTH)
    assert (batch.ids[:, : len(start)] == start).all()
    assert np.array_equal(batch.ids[:, 1:], batch.targets[:, :-1])
    assert (batch.ids[:, len(start) :] != start[0]).all()


def test_answers_weigh_most(tokenizer: Tokenizer, corpus: Corpus) -> None:
    mixture = Mixture()
    batch = make_rows(tokenizer, corpus, seed=5).batch(8, LENGTH)
    known = {0.0, 1.0, np.float32(mixture.context_weight), mixture.answer_weight}
    assert set(np.unique(batch.weights)) <= known
    texts = [tokenizer.decode(row[weights == 4.0]) for row, weights in zip(batch.targets, batch.weights, strict=True)]
    assert all(text and "Question:" not in text and "Passage" not in text for text in texts)


def test_an_answer_is_never_learned_to_be_followed_by_a_line_break(tokenizer: Tokenizer, corpus: Corpus) -> None:
    mixture = Mixture(language_share=0.0, streaming_share=0.5)
    batch = RowMaker(tokenizer, corpus, mixture, 5, sink_token=False).batch(16, LENGTH)
    after = batch.weights[:, :-1] == mixture.answer_weight
    follows = batch.targets[:, 1:][after & (batch.weights[:, 1:] < mixture.answer_weight)]
    weights = batch.weights[:, 1:][after & (batch.weights[:, 1:] < mixture.answer_weight)]
    breaks = follows == token_id(tokenizer, "\u010a")  # how byte-level BPE writes a line break
    assert breaks.sum() > 20
    assert (weights[breaks] == 0.0).all()


def test_a_stream_takes_a_whole_row_and_asks_about_its_lines(tokenizer: Tokenizer, corpus: Corpus) -> None:
    mixture = Mixture(language_share=0.0, streaming_share=1.0)
    batch = RowMaker(tokenizer, corpus, mixture, 5, sink_token=False).batch(16, LENGTH)
    texts = [tokenizer.decode(row, skip_special_tokens=False) for row in batch.ids]
    assert sum(text.count("Question:") for text in texts) > 3 * len(texts)
    for text in texts:
        stream = text.split(EOS)[0]
        values = dict(LINE.findall(stream))
        assert all(values[line] == value for line, value in ASKED.findall(stream))
