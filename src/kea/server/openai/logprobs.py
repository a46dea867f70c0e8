"""Log-probabilities in the three forms of the OpenAI-compatible world: completions, chat, prompt (vLLM's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kea.server.served import Tokenizer
from kea.server.wire.chat_reply import ChatLogprobs, TokenLogprobReply, TopLogprobReply
from kea.server.wire.completions import LegacyLogprobs
from kea.types import TokenLogprob

MIN_LOGPROB = -9999.0


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold: tokens that cannot come have one of -inf."""
    return max(logprob, MIN_LOGPROB)


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of one token; bytes that are no whole character are shown as replacement characters."""
    return tokenizer.token_bytes(token_id).decode(errors="replace")


class LegacyWriter:
    """Writes the parallel lists of /v1/completions; `text_offset` goes on from call to call."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0

    def write(self, entries: Sequence[TokenLogprob | None], token_ids: Sequence[int]) -> LegacyLogprobs:
        """Write one entry per token; the first token of a prompt has none."""
        tokens = [token_text(self._tokenizer, token_id) for token_id in token_ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return LegacyLogprobs(
            tokens=tokens,
            token_logprobs=[None if entry is None else finite(entry.logprob) for entry in entries],
            top_logprobs=[self._top(entry) for entry in entries] if self._num_top else None,
            text_offset=offsets,
        )

    def _top(self, entry: TokenLogprob | None) -> dict[str, float] | None:
        if entry is None:
            return None
        top = [*entry.top[: self._num_top], (entry.token_id, entry.logprob)]
        return {token_text(self._tokenizer, token_id): finite(logprob) for token_id, logprob in reversed(top)}


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Write the form of /v1/chat/completions."""
    return ChatLogprobs(content=[_chat_entry(tokenizer, entry) for entry in entries])


def _chat_entry(tokenizer: Tokenizer, entry: TokenLogprob) -> TokenLogprobReply:
    top = [
        TopLogprobReply(
            token=token_text(tokenizer, token_id), logprob=finite(logprob), bytes=_bytes(tokenizer, token_id)
        )
        for token_id, logprob in entry.top
    ]
    return TokenLogprobReply(
        token=token_text(tokenizer, entry.token_id),
        logprob=finite(entry.logprob),
        bytes=_bytes(tokenizer, entry.token_id),
        top_logprobs=top,
    )


def _bytes(tokenizer: Tokenizer, token_id: int) -> list[int]:
    return list(tokenizer.token_bytes(token_id))


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None] | None
) -> list[dict[str, dict[str, Any]] | None] | None:
    """Write vLLM's form: per prompt token a mapping from token id to its log-probability, rank and text."""
    if entries is None:
        return None
    return [None if entry is None else _prompt_entry(tokenizer, entry) for entry in entries]


def _prompt_entry(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, dict[str, Any]]:
    ranked = {token_id: (rank, logprob) for rank, (token_id, logprob) in enumerate(entry.top, 1)}
    ranked[entry.token_id] = (entry.rank, entry.logprob)
    return {
        str(token_id): {"logprob": finite(logprob), "rank": rank, "decoded_token": token_text(tokenizer, token_id)}
        for token_id, (rank, logprob) in ranked.items()
    }
