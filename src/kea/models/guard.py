"""Keeps special-token text inside values from becoming control tokens. Pure functions over text and spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

Span = tuple[int, int]


class SpecialTokens:
    """The texts of a tokenizer's special tokens and their ids, searched longest first as the tokenizer does."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def find(self, text: str) -> Iterator[re.Match[str]]:
        return self.pattern.finditer(text) if self.pattern is not None else iter(())

    def occurs_in(self, text: str, spans: Sequence[Span]) -> bool:
        """Say whether a special token's text touches one of the spans [start, stop)."""
        return bool(spans) and any(touches(match.span(), spans) for match in self.find(text))


def touches(span: Span, spans: Sequence[Span]) -> bool:
    return any(span[0] < stop and start < span[1] for start, stop in spans)


def pieces(text: str, special: SpecialTokens, literal: Sequence[Span]) -> Iterator[str | int]:
    """Cut `text` at its special tokens, given as ids, except those that touch a `literal` span."""
    done = 0
    for match in special.find(text):
        if touches(match.span(), literal):
            continue
        if match.start() > done:
            yield text[done : match.start()]
        yield special.ids[match.group()]
        done = match.end()
    if done < len(text):
        yield text[done:]
