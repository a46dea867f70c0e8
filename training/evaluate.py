"""Evaluates a model directory on held-out samples and books, and writes the figures as JSON.

    python -m training.evaluate --model src/kea/models/embedded --data DIR --out training/log/evaluation.json

Tasks go through transformers, or with `--server URL` through an OpenAI-compatible server such as `kea serve`, which
must serve the same model directory. The language model's figures (perplexity by position, attention to the first
token, windows with and without sinks) are always computed by transformers; `--samples 0` leaves the tasks out,
`--rows 0` the language. Knows nothing of how a model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from training import language
from training.card import language_table
from training.config import HELD_OUT_BOOKS
from training.corpus import Corpus, book_paths, load_corpus, read_book
from training.engines import ServerEngine, Subject, TransformersEngine, load_subject
from training.scoring import Accuracy, Engine, held_out_world, score_all

TRAINED_LEN = 1024
CACHE_TOKENS = 256
SEED = 20_000


def evaluate_tasks(engine: Engine, corpus: Corpus, count: int) -> dict[str, dict[str, float]]:
    """Return the accuracy of every suite over `count` samples."""
    world = held_out_world(corpus.sentences, corpus.stories, SEED)
    figures: dict[str, dict[str, float]] = {}
    for name, accuracy in score_all(world, count, engine):
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


def evaluate_language(subject: Subject, corpus: Corpus, data: Path, num_rows: int) -> dict[str, object]:
    """Return the figures of the language model on the held-out books."""
    text = "".join(read_book(path) for path in book_paths(data, held_out=True)).encode()
    rows = language.text_rows(corpus.books, subject.start_ids, TRAINED_LEN, num_rows)
    losses = language.token_losses(subject.model, rows)
    num_start, bytes_per_token = len(subject.start), len(text) / len(corpus.books)
    windows = language.window_perplexities(subject.model, rows[:32], CACHE_TOKENS)
    return {
        "books": list(HELD_OUT_BOOKS),
        "rows": len(rows),
        "bytes_per_token": bytes_per_token,
        "bits_per_byte": language.bits_per_byte(losses, num_start, bytes_per_token),
        "bits_per_byte_of_compressors": language.compressed_bits_per_byte(text),
        "perplexity_by_position": language.perplexity_by_position(losses[:, num_start - 1 :]),
        "first_token_attention_by_layer": language.first_token_attention(subject.model, rows[:8]),
        "window_cache_tokens": CACHE_TOKENS,
        "window_perplexity": windows,
        "window_over_sinks": windows["sinks_0"] / windows["sinks_4"],
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--data", type=Path, required=True, help="folder with books/ and tinystories.txt")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--cache", type=Path, default=Path(".train/cache"), help="folder for tokenised books")
    parser.add_argument("--samples", type=int, default=200, help="samples per task; 0: no tasks")
    parser.add_argument("--rows", type=int, default=256, help="rows of held-out text; 0: no language")
    parser.add_argument("--server", help="base URL of an OpenAI-compatible server that the tasks go through")
    parser.add_argument("--sink-token", action="store_true", help="the model was trained with a sink token")
    return parser.parse_args()


def main() -> None:
    """Evaluate as the command line says."""
    arguments = parse_arguments()
    subject = load_subject(arguments.model, arguments.sink_token)
    corpus = load_corpus(arguments.data, subject.tokenizer, arguments.cache, held_out=True)
    engine = ServerEngine(arguments.server) if arguments.server else TransformersEngine(subject)
    report: dict[str, object] = {
        "engine": type(engine).__name__,
        "machine": platform.machine(),
        "seed": SEED,
    }
    if arguments.rows:
        report["language"] = figures = evaluate_language(subject, corpus, arguments.data, arguments.rows)
        print(
            f"{language_table(figures)}\n| window over 4 sinks + window | {figures['window_over_sinks']} |", flush=True
        )
    if arguments.samples:
        report["tasks"] = evaluate_tasks(engine, corpus, arguments.samples)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
