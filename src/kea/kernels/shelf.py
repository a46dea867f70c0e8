"""Files that a later process of the same user finds again: machine code, what was found out about a model.

What lies there is run or believed. So a folder is used only where no other user could have written to it, and what
stands in it is named by a checksum of all that it was made of. Knows no kernels, no models.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
IN_WORK = ".tmp"


class Shelf:
    """One folder of files, each written whole, at most `max_bytes` in all: what was not used for longest goes first.

    Any number of processes use it at once. What cannot be read or written is told once, as a warning, and then the
    shelf is empty. The folder is made when something is written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._is_usable = True

    def try_read(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is none."""
        data = None
        with self._telling():
            path = self._folder / name
            if self._is_usable and path.exists():
                check_private(self._folder)
                with contextlib.suppress(FileNotFoundError):  # another process made room
                    data = path.read_bytes()
                with contextlib.suppress(OSError):  # on a read-only disk the order of going stays as it was
                    os.utime(path)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Keep a file, in place of one of the same name; nothing where it is larger than the shelf."""
        if not self._is_usable or len(data) > self._max_bytes:
            return
        with self._telling():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(self._folder)
            handle, temporary = tempfile.mkstemp(suffix=IN_WORK, dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                os.replace(temporary, self._folder / name)
            except BaseException:
                os.unlink(temporary)
                raise
            self._make_room()

    def _make_room(self) -> None:
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process made room
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        taken = 0
        for _, size, path in sorted(files, reverse=True):
            taken += size
            if taken > self._max_bytes:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._is_usable = False
            logger.warning("Nothing is kept for later starts in %s: %s", self._folder, error)


@functools.cache
def user_shelf(name: str, max_bytes: int) -> Shelf | None:
    """Return the shelf `name` of this user, below ~/.cache/kea; None where the user has no home."""
    try:
        return Shelf(Path.home() / ".cache" / "kea" / name, max_bytes)
    except RuntimeError as error:
        logger.warning("Nothing is kept for later starts: %s", error)
        return None


def check_private(folder: Path) -> None:
    """Raise `PermissionError` unless the folder belongs to this user and no other may write to it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{folder} is not a folder")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user (id {found.st_uid})")
    if found.st_mode & OTHERS_MAY_WRITE:
        raise PermissionError(f"others may write to {folder} (mode {stat.S_IMODE(found.st_mode):o})")
