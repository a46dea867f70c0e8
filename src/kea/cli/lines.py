"""A file that two write to: one in pieces of lines, the other in blocks, which never stand inside a line.

Knows no application and no variables.
"""

from __future__ import annotations

import threading
from typing import IO, Any


class SharedLines:
    """Stands in for a text file while somebody else also puts blocks into it. Writes are the file's own.

    A block waits for the end of the line that was begun; `end` puts what still waits.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._waiting: list[str] = []
        self._is_begun = False

    def write(self, text: str) -> int:
        with self._lock:
            num_written = self._file.write(text)
            if text:
                self._is_begun = not text.endswith("\n")
            self._put_waiting()
            return num_written

    def put(self, block: str) -> None:
        """Write a block of whole lines, now or behind the line that was begun. May be called on any thread."""
        with self._lock:
            self._waiting.append(block)
            self._put_waiting()

    def end(self) -> None:
        """Write the blocks that wait, behind a line that stays as it is."""
        with self._lock:
            if self._waiting and self._is_begun:
                self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _put_waiting(self) -> None:
        if self._waiting and not self._is_begun:
            blocks, self._waiting = self._waiting, []
            self._file.write("".join(blocks))
            self._file.flush()
