"""Figures of the language model itself on held-out books: bits per byte, perplexity by position, sinks, windows.

Needs a causal model of transformers; knows no task.
"""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
from typing import Any

import torch
from torch import Tensor

from training.corpus import TokenArray

Model = Any  # a causal model of transformers, whose package has no types
BATCH_ROWS = 8
FIRST_POSITIONS_SHARE = 8  # perplexity is told for this many equal stretches of positions
SINK_COUNTS = (0, 1, 2, 4)  # 0 is a window alone


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Return the bits per byte of general compressors on the same text."""
    sizes = {"gzip_9": len(gzip.compress(text, 9)), "xz_9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def text_rows(tokens: TokenArray, start: list[int], length: int, most: int) -> Tensor:
    """Return up to `most` rows [N, T] of consecutive text, each after the tokens that begin a row, evenly spread."""
    body = length - len(start)
    count = len(tokens) // body
    step = max(1, count // most)
    rows = [[*start, *tokens[i * body : (i + 1) * body].tolist()] for i in range(0, count, step)]
    return torch.tensor(rows[:most])


@torch.no_grad()
def token_losses(model: Model, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the loss in nats of tokens 1 .. T - 1 of every row [N, T - 1]; `mask` [T, T] is True where visible."""
    losses: list[Tensor] = []
    for chunk in torch.split(rows, BATCH_ROWS):
        extra = {} if mask is None else {"attention_mask": additive(mask).expand(len(chunk), 1, -1, -1)}
        logits = model(chunk, **extra).logits[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.mT, chunk[:, 1:], reduction="none"))
    return torch.cat(losses)


def additive(mask: Tensor) -> Tensor:
    """Return a mask to add to attention logits: zero where visible."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def bits_per_byte(losses: Tensor, num_start: int, bytes_per_token: float) -> float:
    """Return the bits per byte of text from the losses of rows that begin with `num_start` special tokens."""
    return float(losses[:, num_start - 1 :].mean()) / math.log(2) / bytes_per_token


def perplexity_by_position(losses: Tensor) -> dict[str, float]:
    """Return the perplexity of equal stretches of positions, named by their interval."""
    length = losses.shape[1] + 1
    edges = [round(i * length / FIRST_POSITIONS_SHARE) for i in range(FIRST_POSITIONS_SHARE + 1)]
    pieces = {f"{low}-{high - 1}": losses[:, max(0, low - 1) : high - 1] for low, high in itertools.pairwise(edges)}
    return {name: math.exp(float(piece.mean())) for name, piece in pieces.items()}


@torch.no_grad()
def first_token_attention(model: Model, rows: Tensor) -> list[float]:
    """Return for every layer the share of attention that the second half of each row pays to its first token."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only form that returns its weights
    shares: list[Tensor] = []
    for chunk in torch.split(rows, 2):
        weights = model(chunk, output_attentions=True).attentions
        shares.append(torch.stack([layer[:, :, rows.shape[1] // 2 :, 0].mean() for layer in weights]))
    model.set_attn_implementation(usual)
    return [float(share) for share in torch.stack(shares).mean(0)]


def window_mask(length: int, num_sinks: int, window: int) -> Tensor:
    """Return [T, T]: a query sees the first `num_sinks` tokens, and itself with the `window` tokens before it."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    return (key <= query) & ((key >= query - window) | (key < num_sinks))


def window_perplexities(model: Model, rows: Tensor, cache: int) -> dict[str, float]:
    """Return perplexity past twice the cache: dense, and with a cache of so many sinks and a window in its rest.

    A plain mask with absolute positions inside the trained length; the columns of StreamingLLM, table 3.
    """
    length = rows.shape[1]
    masks = {"dense": window_mask(length, 0, length)}
    masks.update({f"sinks_{count}": window_mask(length, count, cache - count) for count in SINK_COUNTS})
    return {
        name: math.exp(float(token_losses(model, rows, mask)[:, 2 * cache :].mean())) for name, mask in masks.items()
    }
