"""Evaluates a model directory on held-out samples and books, and writes the figures as JSON.

    python -m training.evaluate --model src/kea/models/embedded --data DIR --out training/log/evaluation.json

Engines come in through one small function of type `Complete`; knows nothing of how a model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training import language
from training.config import HELD_OUT_BOOKS
from training.corpus import book_paths, load_corpus, read_book
from training.scoring import Accuracy, Complete, held_out_world, score_all
from training.tokenizer import BOS, END, EOS, PAD, SINK, encode, load_tokenizer, token_id

MAX_NEW_TOKENS = 160
BATCH_SIZE = 32
TRAINED_LEN = 1024
CACHE_TOKENS = 256
SEED = 20_000


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is evaluated, its tokenizer, and the tokens that begin every one of its rows."""

    model: Any
    tokenizer: Tokenizer
    start: tuple[str, ...]

    @property
    def start_ids(self) -> list[int]:
        """The ids of the tokens that begin a row."""
        return [token_id(self.tokenizer, token) for token in self.start]


def load_subject(folder: Path, sink_token: bool) -> Subject:
    """Load a model directory in fp32, with attention that can return its weights."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return Subject(model.eval(), load_tokenizer(folder), (SINK, BOS) if sink_token else (BOS,))


def create_complete(subject: Subject) -> Complete:
    """Return greedy completion through transformers, in batches padded on the left."""

    def complete(texts: Sequence[str]) -> list[str]:
        rows = [[*subject.start_ids, *encode(subject.tokenizer, text)] for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers = [""] * len(rows)
        for at in range(0, len(order), BATCH_SIZE):
            chosen = order[at : at + BATCH_SIZE]
            for i, answer in zip(chosen, complete_batch(subject, [rows[i] for i in chosen]), strict=True):
                answers[i] = answer
        return answers

    return complete


@torch.no_grad()
def complete_batch(subject: Subject, rows: list[list[int]]) -> list[str]:
    """Return the greedy continuation of every row of ids, without its stop token."""
    longest = max(len(row) for row in rows)
    pad_id = token_id(subject.tokenizer, PAD)
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    stops = [token_id(subject.tokenizer, EOS), token_id(subject.tokenizer, END)]
    output = subject.model.generate(
        input_ids=ids,
        attention_mask=(ids != pad_id).long(),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=stops,
        pad_token_id=pad_id,
    )
    return [subject.tokenizer.decode(row[longest:].tolist(), skip_special_tokens=True) for row in output]


def evaluate_tasks(subject: Subject, data: Path, cache: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the accuracy of every suite over `count` samples."""
    corpus = load_corpus(data, subject.tokenizer, cache, held_out=True)
    world = held_out_world(corpus.sentences, corpus.stories, SEED)
    figures: dict[str, dict[str, float]] = {}
    for name, accuracy in score_all(world, count, create_complete(subject)):
        figures[name] = accuracy_figures(accuracy)
        print(f"{name:18}{accuracy.correct:5} of {accuracy.total}", flush=True)
    return figures


def accuracy_figures(accuracy: Accuracy) -> dict[str, float]:
    """Return an accuracy as it is written into the report."""
    low, high = accuracy.interval()
    return {
        "correct": accuracy.correct,
        "total": accuracy.total,
        "accuracy": round(accuracy.share, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def evaluate_language(subject: Subject, data: Path, cache: Path, num_rows: int) -> dict[str, object]:
    """Return the figures of the language model on the held-out books."""
    corpus = load_corpus(data, subject.tokenizer, cache, held_out=True)
    text = "".join(read_book(path) for path in book_paths(data, held_out=True)).encode()
    rows = language.text_rows(corpus.books, subject.start_ids, TRAINED_LEN, num_rows)
    losses = language.token_losses(subject.model, rows)
    num_start, bytes_per_token = len(subject.start), len(text) / len(corpus.books)
    return {
        "books": list(HELD_OUT_BOOKS),
        "rows": len(rows),
        "bytes_per_token": bytes_per_token,
        "bits_per_byte": language.bits_per_byte(losses, num_start, bytes_per_token),
        "bits_per_byte_of_compressors": language.compressed_bits_per_byte(text),
        "perplexity_by_position": language.perplexity_by_position(losses[:, num_start - 1 :]),
        "first_token_attention_by_layer": language.first_token_attention(subject.model, rows[:8]),
        "window_cache_tokens": CACHE_TOKENS,
        "window_perplexity": language.window_perplexities(subject.model, rows[:32], CACHE_TOKENS),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--data", type=Path, required=True, help="folder with books/ and tinystories.txt")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--cache", type=Path, default=Path(".train/cache"), help="folder for tokenised books")
    parser.add_argument("--samples", type=int, default=200, help="samples per task")
    parser.add_argument("--rows", type=int, default=256, help="rows of held-out text")
    parser.add_argument("--sink-token", action="store_true", help="the model was trained with a sink token")
    return parser.parse_args()


def main() -> None:
    """Evaluate as the command line says."""
    arguments = parse_arguments()
    subject = load_subject(arguments.model, arguments.sink_token)
    report = {
        "engine": "transformers",
        "machine": platform.machine(),
        "seed": SEED,
        "language": evaluate_language(subject, arguments.data, arguments.cache, arguments.rows),
        "tasks": evaluate_tasks(subject, arguments.data, arguments.cache, arguments.samples),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
