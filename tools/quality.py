"""What int8 weights cost: perplexity of a text under a model as it is, and with its weights rounded.

python -m tools.quality --text BOOK.txt [--model DIR]   (the embedded model by default)
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from kea.attention import Run, SequencePlan, StepPlan
from kea.models import DecoderModel, StepInput, Tokenizer, load_model, require_embedded_model

PAGE_TOKENS = 16


def perplexity(model: DecoderModel, rows: list[list[int]]) -> float:
    """Return the perplexity per token of rows of equal length, each alone, without their first token."""
    length = len(rows[0])
    pages = -(-length // PAGE_TOKENS)
    cache = model.create_cache(pages * PAGE_TOKENS)
    plan = StepPlan(
        (SequencePlan(0, length, 0, tuple(range(pages)), (Run(0, length),)),), torch.arange(length), PAGE_TOKENS
    )
    total = 0.0
    for row in rows:
        ids = torch.tensor(row)
        logits = model.forward(StepInput(ids, torch.arange(length), torch.arange(length - 1), plan), cache)
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    return math.exp(total / (len(rows) * (length - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text that the model was not trained on")
    parser.add_argument("--model", help="a model directory; the embedded model by default")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=100, help="rows, from the beginning of the text on")
    order = parser.parse_args()
    source = order.model or str(require_embedded_model())
    tokenizer = Tokenizer.load(source)
    ids = tokenizer.encode(order.text.read_text(encoding="utf-8"), special=False, allow_special=False)
    start = tokenizer.encode("a")[: -len(tokenizer.encode("a", special=False))]
    step = order.length - len(start)
    rows = [start + ids[first : first + step] for first in range(0, len(ids) - step, step)][: order.rows]
    exact = perplexity(load_model(source), rows)
    rounded = perplexity(load_model(source, quantize="int8"), rows)
    print(f"{len(rows)} rows of {order.length} tokens: {exact:.4f} as it is, {rounded:.4f} in int8")
    print(f"int8 / as it is: {rounded / exact:.4f}")


if __name__ == "__main__":
    main()
