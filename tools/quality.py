"""What rounding costs: perplexity of a text under a model as it is, and with its weights, or keys and values, rounded.

python -m tools.quality --text BOOK.txt [--model DIR]   (the embedded model by default)
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from kea.attention import Run, SequencePlan, StepPlan
from kea.models import DecoderModel, StepInput, Tokenizer, load_model, require_embedded_model

PAGE_TOKENS = 16
ROUNDINGS: dict[str, dict[str, Any]] = {
    "weights in int8": {"quantize": "int8"},
    "KV in float16": {"kv_cache_dtype": "float16"},
    "KV in int8": {"kv_cache_dtype": "int8"},
    "both in int8": {"quantize": "int8", "kv_cache_dtype": "int8"},
}


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
    print(f"{len(rows)} rows of {order.length} tokens, as it is: {exact:.4f}")
    for name, options in ROUNDINGS.items():
        rounded = perplexity(load_model(source, **options), rows)
        print(f"{name}: {rounded:.4f}, {rounded / exact:.5f} of that")


if __name__ == "__main__":
    main()
