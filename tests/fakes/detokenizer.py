"""A detokenizer whose tokens are pieces of bytes: id i stands for the i-th of a list. Characters may be split."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class FakeDetokenizer:
    """Same methods as `kea.models.detokenizer.Detokenizer`."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_whole(self) -> bool:
        """Whether no byte waits for the rest of its character."""
        return not self._utf8.getstate()[0]

    @property
    def is_plain(self) -> bool:
        """Whether a token of whole characters adds them, and changes nothing."""
        return self.is_whole

    def try_text(self, token_id: int) -> str | None:
        """Return what a token adds; None where its characters are not whole."""
        try:
            return self._pieces[token_id].decode()
        except UnicodeDecodeError:
            return None

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; return the text that became certain."""
        return self._utf8.decode(b"".join(self._pieces[token_id] for token_id in token_ids))

    def flush(self) -> str:
        """End the output; return what was held back."""
        return self._utf8.decode(b"", final=True)
