"""Draws the loss curve of a run from its log. Needs matplotlib (the `bench` extra).

python -m training.plot --log training/log/plain.jsonl --out training/log/loss.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.command_line import Mistake, in_one_sentence


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the entries of a log in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def split_by_length(entries: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Return consecutive stretches of entries with the same tokens per row."""
    stretches: list[list[dict[str, float]]] = []
    for entry in entries:
        if not stretches or stretches[-1][-1]["length"] != entry["length"]:
            stretches.append([])
        stretches[-1].append(entry)
    return stretches


def plot(entries: list[dict[str, float]], out: Path) -> None:
    """Write the curve of the weighted loss over millions of tokens as a PNG."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise Mistake("a plot needs matplotlib: pip install -e .[bench]") from error

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for stretch in split_by_length(entries):
        tokens = [entry["tokens"] / 1e6 for entry in stretch]
        axes.plot(tokens, [entry["loss"] for entry in stretch], label=f"rows of {stretch[0]['length']:.0f}")
    axes.set(xlabel="million tokens", ylabel="weighted loss (nats per token)", title="Training of the embedded model")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def main() -> None:
    """Plot as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="log.jsonl of a run")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    arguments = parser.parse_args()
    with in_one_sentence():
        if not (entries := read_log(arguments.log)):
            raise Mistake(f"{arguments.log} has no entries to plot")
        plot(entries, arguments.out)


if __name__ == "__main__":
    main()
