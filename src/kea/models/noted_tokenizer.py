"""A tokenizer as transformers loaded it once, loaded again by the tokenizers library alone. Knows no models.

Its chat template is rendered by transformers' own code, which is imported when a chat is first rendered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from kea.models.notes import Note, NotesOf

KIND = "tokenizer"


class NotedTokenizer:
    """Has what `kea.models.tokenizer.Tokenizer` takes of transformers' one; `load` loads that one.

    `more_eos_ids` are those of the generation config beside it.
    """

    def __init__(self, note: Note, load: Callable[[], Any]) -> None:
        from tokenizers import Tokenizer as Backend

        facts = note.facts
        self.backend_tokenizer = Backend.from_str(facts["backend"])
        self.eos_token_id: int | None = facts["eos_token_id"]
        self.bos_token_id: int | None = facts["bos_token_id"]
        self.chat_template: str | dict[str, str] | None = facts["chat_template"]
        self.more_eos_ids: tuple[int, ...] = tuple(facts["more_eos_ids"])
        self._load = load

    @cached_property
    def _whole(self) -> Any:
        return self._load()

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole.apply_chat_template(*args, **kwargs)


def note_tokenizer(tokenizer: Any, more_eos_ids: tuple[int, ...], notes: NotesOf) -> None:
    """Note a tokenizer of transformers, where it rests on the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    facts = {
        "backend": backend.to_str(),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "chat_template": tokenizer.chat_template,
        "more_eos_ids": list(more_eos_ids),
    }
    notes.write(Note(facts), KIND)
