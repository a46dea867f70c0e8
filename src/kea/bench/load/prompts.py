"""Prompts of a wanted length in tokens, made of random words, and prompts from a file.

Owns the words and the arithmetic of their lengths. Does not know servers: it is given a `Lexicon`, which says how many
tokens each word costs with the tokenizer at hand (`kea.bench.load.calibration` measures it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kea.bench.integers import parse_integer
from kea.errors import InvalidRequest

# Short, frequent words: most tokenizers hold each as one token, the smallest spell it in two or three.
_TEXT = (
    "a the of and to in he was it that his I for with as had she you not her on but at is they him be all said so"
    " one from were there when them me this have by or what would no my up out who we their been if will could"
    " your an more into then do now time down like see some little over about man very good day old come two made"
    " did than came after well how where long know must great here way before only back more through eyes hand"
    " head again any its has never house last went night first right mother tell own still place just own"
    " people year work home door light side water face room world morning white love father young tree sun"
)
WORDS = tuple(dict.fromkeys(_TEXT.split()))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of random words: equal seeds and lengths give equal text, so prompts share what they share here."""

    seed: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words with the tokens that each adds to a text, and `base_tokens`, what the tokenizer adds to every prompt.

    `is_exact` says whether the costs were measured word by word; else they are one average over all words.
    """

    words: tuple[str, ...]
    costs: tuple[float, ...]
    base_tokens: float
    is_exact: bool


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """One prompt of a user's file, with the answer's length where the file tells it."""

    text: str
    output_len: int | None = None


def render(pieces: tuple[Piece, ...], lexicon: Lexicon) -> str:
    """Return the text of a prompt: at least one word, and short of the wanted length by less than the cheapest word.

    What the tokenizer adds to every prompt is taken from the last piece, so that pieces before it stay shareable.
    """
    texts = [_fill(piece, lexicon, 0.0) for piece in pieces[:-1]]
    texts.append(_fill(pieces[-1], lexicon, lexicon.base_tokens))
    cheapest = min(zip(lexicon.costs, lexicon.words, strict=True))[1]
    return " ".join(text for text in texts if text) or cheapest


def _fill(piece: Piece, lexicon: Lexicon, reserved_tokens: float) -> str:
    rng = Random(piece.seed)
    remaining = piece.num_tokens - reserved_tokens
    cheapest, dearest = min(lexicon.costs), max(lexicon.costs)
    words: list[str] = []
    # Half a token of tolerance: an average cost is no whole number.
    while remaining + 0.5 >= cheapest:
        index = rng.randrange(len(lexicon.words))
        if remaining < dearest:
            index = rng.choice([i for i, cost in enumerate(lexicon.costs) if cost <= remaining + 0.5])
        words.append(lexicon.words[index])
        remaining -= lexicon.costs[index]
    return " ".join(words)


def read_prompts(path: Path) -> tuple[FilePrompt, ...]:
    """Read prompts: a .jsonl file with the key "prompt" (and "output_len") on each line, else one prompt per line.

    Raises InvalidRequest where the file is missing, malformed (with the line) or empty.
    """
    if not path.is_file():
        raise InvalidRequest(f"prompts is {str(path)!r}, and there is no such file.", param="prompts")
    numbered = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise InvalidRequest(f"prompts {str(path)!r} holds no prompt.", param="prompts")
    if path.suffix != ".jsonl":
        return tuple(FilePrompt(line) for _, line in lines)
    return tuple(_parse_prompt(line, number, path) for number, line in lines)


def _parse_prompt(line: str, number: int, path: Path) -> FilePrompt:
    try:
        row: dict[str, Any] = json.loads(line)
        text, output_len = row["prompt"], row.get("output_len")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _malformed(path, number) from error
    if not isinstance(text, str) or not text:
        raise _malformed(path, number)
    return FilePrompt(text, None if output_len is None else parse_integer(str(output_len), "output_len"))


def _malformed(path: Path, number: int) -> InvalidRequest:
    return InvalidRequest(
        f'prompts {str(path)!r} is malformed in line {number}; a line is {{"prompt": "text", "output_len": 64}}.',
        param="prompts",
    )
