"""Evaluates a model directory on held-out samples and books, and writes the figures as JSON.

    python -m training.evaluate --model src/kea/models/embedded --data DIR --out training/log/evaluation.json

Tasks and the losses of text go through Kea's engine and again through transformers; where the two disagree, the report
is written all the same and the command ends with status 1. With `--server URL` tasks go through an OpenAI-compatible
server of the same model directory instead of the engine in this process. What needs masks and attention weights
(windows with and without sinks, attention to the first token) is computed by transformers alone. `--samples 0` leaves
the tasks out, `--rows 0` the language. Knows nothing of how a model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from training import language
from training.card import language_table
from training.command_line import in_one_sentence, need_files
from training.config import HELD_OUT_BOOKS
from training.corpus import Corpus, book_paths, check_data, load_corpus, read_book
from training.engines import ServerEngine, Subject, TransformersEngine, load_subject
from training.kea_engine import KeaEngine
from training.scoring import Accuracy, Engine, held_out_world, score_all, score_enforced_json

TRAINED_LEN = 1024
CACHE_TOKENS = 256
SEED = 20_000
NUM_WINDOW_ROWS = 32
MAX_LOSS_DIFFERENCE = 0.01  # nats of one token: fp32 sums in another order differ by far less, another mask by far more

Figures = dict[str, dict[str, float]]


def evaluate_tasks(engine: Engine, corpus: Corpus, count: int) -> Figures:
    """Return the accuracy of every suite over `count` samples, the same ones for every engine."""
    world = held_out_world(corpus.sentences, corpus.stories, SEED)
    return written_down(type(engine).__name__, score_all(world, count, engine))


def evaluate_schema(engine: KeaEngine, corpus: Corpus, count: int) -> Figures:
    """Return the accuracy of extractions with the schema enforced, which is the engine's own work."""
    world = held_out_world(corpus.sentences, corpus.stories, SEED)
    return written_down(type(engine).__name__, score_enforced_json(world, count, engine))


def written_down(engine: str, scores: Iterable[tuple[str, Accuracy]]) -> Figures:
    """Return accuracies as the report has them; tell of each as soon as it is known."""
    figures: Figures = {}
    for name, accuracy in scores:
        figures[name] = accuracy_figures(accuracy)
        print(f"{engine:20}{name:22}{accuracy.correct:5} of {accuracy.total}", flush=True)
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


def evaluate_language(subject: Subject, kea: KeaEngine, corpus: Corpus, data: Path, num_rows: int) -> dict[str, Any]:
    """Return the figures of the language model on the held-out books."""
    text = "".join(read_book(path) for path in book_paths(data, held_out=True)).encode()
    rows = language.text_rows(corpus.books, subject.start_ids, TRAINED_LEN, num_rows)
    num_start, bytes_per_token = len(subject.start), len(text) / len(corpus.books)
    losses = language.token_losses(subject.model, rows)
    theirs, ours = losses[:, num_start - 1 : -1], kea.token_losses(rows[:, :-1])[:, num_start - 1 :]
    windows = language.window_perplexities(subject.model, rows[:NUM_WINDOW_ROWS], CACHE_TOKENS)
    return {
        "books": list(HELD_OUT_BOOKS),
        "rows": len(rows),
        "bytes_per_token": bytes_per_token,
        "bits_per_byte": language.bits_per_byte(losses, num_start, bytes_per_token),
        "bits_per_byte_of_compressors": language.compressed_bits_per_byte(text),
        "perplexity_by_position": language.perplexity_by_position(ours),
        "perplexity_by_position_through_transformers": language.perplexity_by_position(theirs),
        "largest_loss_difference_nats": largest_difference(ours, theirs),
        "first_token_attention_by_layer": language.first_token_attention(subject.model, rows[:8]),
        "window_cache_tokens": CACHE_TOKENS,
        "window_rows": len(rows[:NUM_WINDOW_ROWS]),
        "window_perplexity": windows,
        "window_over_sinks": windows["sinks_0"] / windows["sinks_4"],
    }


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference between two losses of one token."""
    return float((ours - theirs).abs().max())


def disagreements(report: dict[str, Any]) -> list[str]:
    """Return in words where the engines differ."""
    ours, theirs = report.get("tasks", {}), report.get("tasks_through_transformers", {})
    found = [
        f"{name}: {figures['correct']} right answers, {theirs[name]['correct']} through transformers"
        for name, figures in ours.items()
        if figures != theirs[name]
    ]
    difference = report.get("language", {}).get("largest_loss_difference_nats", 0.0)
    if difference > MAX_LOSS_DIFFERENCE:
        found.append(f"a token's loss differs by {difference} nats; at most {MAX_LOSS_DIFFERENCE} is rounding")
    return found


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


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the report that the command line asks for."""
    subject = load_subject(arguments.model, arguments.sink_token)
    corpus = load_corpus(arguments.data, subject.tokenizer, arguments.cache, held_out=True)
    report: dict[str, Any] = {"engine": "Kea", "machine": platform.machine(), "seed": SEED}
    with KeaEngine(arguments.model, subject) as kea:
        if arguments.rows:
            report["language"] = figures = evaluate_language(subject, kea, corpus, arguments.data, arguments.rows)
            print(f"{language_table(figures)}\n", flush=True)
        if arguments.samples:
            first = ServerEngine(arguments.server) if arguments.server else kea
            second = TransformersEngine(subject)
            report["tasks"] = evaluate_tasks(first, corpus, arguments.samples)
            report["tasks_through_transformers"] = evaluate_tasks(second, corpus, arguments.samples)
            report["tasks_with_schema"] = evaluate_schema(kea, corpus, arguments.samples)
    return report


def main() -> None:
    """Evaluate as the command line says."""
    arguments = parse_arguments()
    with in_one_sentence():
        need_files(arguments.model, ("config.json", "model.safetensors", "tokenizer.json"), "a model directory")
        check_data(arguments.data)
        report = evaluate(arguments)
    report["disagreements"] = found = disagreements(report)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(found) or "Kea and transformers agree.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
