"""Writes the model card of a model directory: fixed words from a template, figures from the stored evaluation.

    python -m training.card --model src/kea/models/embedded --evaluation training/log/evaluation.json \
        --progress training/log/progress.json

Knows nothing of how figures were measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.command_line import Mistake, in_one_sentence, need_files
from training.config import ModelConfig, Recipe

TEMPLATE = Path(__file__).with_name("card.md")
SUITE_WORDS = {
    "qa_1": "question over 1 passage",
    "qa_4": "question over 4 passages",
    "qa_8": "question over 8 passages",
    "qa_4_absent": "question that 4 passages do not answer",
    "stream_any": "StreamEval, 1-40 lines back",
    "stream_1": "StreamEval, last line",
    "stream_5": "StreamEval, 5 lines back",
    "stream_10": "StreamEval, 10 lines back",
    "stream_20": "StreamEval, 20 lines back",
    "stream_40": "StreamEval, 40 lines back",
    "summarise": "summary: lead sentence",
    "refine_summary": "refine a summary",
    "merge_summaries": "merge summaries",
    "notes": "who is where, one passage (map)",
    "refine_notes": "add a passage to notes (chain step)",
    "merge_notes": "merge notes (reduce step)",
    "extract": "fields into JSON, exact text",
    "choice": "pick one of the choices",
    "extract_valid": "fields into JSON, valid for the schema",
    "extract_schema_right": "fields into JSON, right, with the schema enforced",
    "extract_schema_valid": "fields into JSON, valid, with the schema enforced",
    "chain": "chain over 4 passages, own notes",
    "map_reduce": "map-reduce over 4 passages, own notes",
}


def task_table(tasks: dict[str, dict[str, float]]) -> str:
    """Return the table of accuracies, one line per suite."""
    lines = ["| task (held-out names) | right | of | accuracy | 95 % interval |", "|---|---|---|---|---|"]
    for name, words in SUITE_WORDS.items():
        got = tasks[name]
        interval = f"{percent(got['low'])} - {percent(got['high'])}"
        lines.append(f"| {words} | {got['correct']} | {got['total']} | {percent(got['accuracy'])} | {interval} |")
    return "\n".join(lines)


def language_table(figures: dict[str, Any]) -> str:
    """Return the table of the language model's figures on the held-out books."""
    others, windows = figures["bits_per_byte_of_compressors"], figures["window_perplexity"]
    rows = {
        "bits per byte, this model": f"{figures['bits_per_byte']:.3f}",
        "bits per byte, xz -9": f"{others['xz_9']:.3f}",
        "bits per byte, gzip -9": f"{others['gzip_9']:.3f}",
        "perplexity per token by position": ", ".join(
            f"{where}: {value:.1f}" for where, value in figures["perplexity_by_position"].items()
        ),
        "attention paid to the first token, by layer": ", ".join(
            percent(share) for share in figures["first_token_attention_by_layer"]
        ),
        f"perplexity past a cache of {figures['window_cache_tokens']} tokens": ", ".join(
            f"{name}: {value:.1f}" for name, value in windows.items()
        ),
        "perplexity of a window over 4 sinks + window": f"{figures['window_over_sinks']:.2f}",
    }
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def percent(share: float) -> str:
    """Return a share as percent with one digit."""
    return f"{100 * share:.1f} %"


def render_card(evaluation: dict[str, Any], progress: dict[str, float], model: ModelConfig, parameters: int) -> str:
    """Return the text of the model card."""
    words = {
        "PARAMETERS": f"{parameters / 1e6:.2f} million",
        "TOKENS": f"{progress['tokens'] / 1e6:.1f} million",
        "HOURS": f"{progress['seconds'] / 3600:.1f}",
        "VOCABULARY": str(model.vocab_size),
        "LAYERS": str(model.num_layers),
        "WIDTH": str(model.hidden_size),
        "HEADS": f"{model.num_heads} of {model.head_dim}",
        "LENGTH": str(model.max_len),
        "TASK_TABLE": task_table(evaluation["tasks"] | evaluation["tasks_with_schema"]),
        "LANGUAGE_TABLE": language_table(evaluation["language"]),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def count_parameters(folder: Path) -> int:
    """Return the number of weights in a model directory."""
    from safetensors.numpy import load_file

    return sum(weight.size for weight in load_file(folder / "model.safetensors").values())


def main() -> None:
    """Write the card as the command line says."""
    arguments = parse_arguments()
    with in_one_sentence():
        write_card(arguments)


def write_card(arguments: argparse.Namespace) -> None:
    """Write the card into the model directory; raise Mistake where the evaluation left out tasks or language."""
    need_files(arguments.model, ("model.safetensors",), "a model directory")
    evaluation = json.loads(arguments.evaluation.read_text(encoding="utf-8"))
    if missing := {"tasks", "tasks_with_schema", "language"} - evaluation.keys():
        raise Mistake(f"{arguments.evaluation} has no {', no '.join(sorted(missing))}: evaluate with samples and rows")
    progress = json.loads(arguments.progress.read_text(encoding="utf-8"))
    card = render_card(evaluation, progress, Recipe().model, count_parameters(arguments.model))
    (arguments.model / "README.md").write_text(card, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--evaluation", type=Path, required=True, help="figures that training.evaluate wrote")
    parser.add_argument("--progress", type=Path, required=True, help="state.json of the run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
