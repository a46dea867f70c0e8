"""The token counts that every OpenAI-compatible answer carries."""

from __future__ import annotations

from kea.server.wire.base import Reply


class CachedTokens(Reply):
    """How many of the prompt's tokens were found computed already."""

    cached_tokens: int


class UsageSoFar(Reply):
    """Tokens of one choice and its prompt while it is written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageReply(Reply):
    """Tokens of one request, over all its prompts and choices; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
