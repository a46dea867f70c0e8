"""The language corpora: books and stories, what is held out, and their token files. Knows nothing of tasks or rows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.command_line import Mistake, need_files
from training.config import HELD_OUT_BOOKS
from training.tokenizer import EOS, encode, token_id

TokenArray = npt.NDArray[np.uint16]
PLAIN = re.compile(r"[A-Z][\w ,;'-]+ [a-z]{3,}\.")  # no quotation, and no abbreviation at the end
STORY_END = "<|endoftext|>"
NUM_HELD_OUT_STORIES = 50
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Language for one side of the split: running text as tokens, and pieces of text for the synthetic tasks."""

    books: TokenArray
    stories: tuple[str, ...]
    sentences: tuple[str, ...]


def check_data(data: Path) -> None:
    """Raise Mistake where a folder lacks the stories, a book that is held out, or any other book."""
    held_out = [f"books/{name}.txt" for name in HELD_OUT_BOOKS]
    need_files(data, ("tinystories.txt", *held_out), "the folder of the data")
    if not book_paths(data, held_out=False):
        raise Mistake(f"{data}/books has no books but the {len(HELD_OUT_BOOKS)} that are held out")


def book_paths(data: Path, held_out: bool) -> list[Path]:
    """Return the books of one side of the split, sorted by name."""
    return [path for path in sorted((data / "books").glob("*.txt")) if (path.stem in HELD_OUT_BOOKS) == held_out]


def read_book(path: Path) -> str:
    """Return a book's text without its title lines."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.split("-------", 1)[-1].strip()


def read_stories(data: Path, held_out: bool) -> tuple[str, ...]:
    """Return one side of the stories; the last ones of the file are held out."""
    text = (data / "tinystories.txt").read_text(encoding="utf-8", errors="replace")
    stories = tuple(story.strip() for story in text.split(STORY_END) if len(story) > 200)
    return stories[-NUM_HELD_OUT_STORIES:] if held_out else stories[:-NUM_HELD_OUT_STORIES]


def plain_sentences(text: str) -> Iterator[str]:
    """Yield the short whole sentences of running prose; those with quotation marks are left out."""
    for paragraph in text.split("\n"):
        for sentence in SENTENCE.split(paragraph.strip()):
            if PLAIN.fullmatch(sentence) and 25 <= len(sentence) <= 130:
                yield sentence


def load_corpus(data: Path, tokenizer: Tokenizer, cache: Path, held_out: bool = False) -> Corpus:
    """Read one side of the split; the tokens of the books are kept in `cache`, by the checksum of the tokenizer."""
    texts = [read_book(path) for path in book_paths(data, held_out)]
    sentences = tuple(sentence for text in texts for sentence in plain_sentences(text))
    checksum = zlib.crc32(tokenizer.to_str().encode())
    token_path = cache / f"books-{'held-out' if held_out else 'train'}-{checksum:08x}.npy"
    if not token_path.exists():
        print(f"tokenising {len(texts)} books into {token_path} ...", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(token_path, tokenize_books(texts, tokenizer))
    return Corpus(np.load(token_path), read_stories(data, held_out), sentences)


def tokenize_books(texts: list[str], tokenizer: Tokenizer) -> TokenArray:
    """Return the tokens of all books one after the other, <|eos|> after each."""
    eos_id = token_id(tokenizer, EOS)
    return np.concatenate([np.array([*encode(tokenizer, text), eos_id], dtype=np.uint16) for text in texts])
