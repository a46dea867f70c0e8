"""What transformers told of a model's directory, noted for the next load: importing it takes longer than our own load.

A note is found by a checksum of all that it follows from: the directory's small files, the versions of the libraries,
our own code that made it. It is written only where the directory is still as it was before it was read. Of weights it
holds nothing; what a load says of them it compares with the weights that are there (`noted_model`). Without a note
everything is as it is without notes. Knows no requests.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kea.kernels.shelf import Shelf, user_shelf

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
"""Of all notes of a user. A note of a tokenizer is about as large as its tokenizer.json; one of a load has 18 rows of
logits in fp32: 2 MB with a vocabulary of 32,000."""

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*")
MAX_SMALL_BYTES = 128 << 20
LIBRARIES = ("transformers", "tokenizers", "torch")
JSON = "json"


@dataclass(frozen=True, slots=True)
class Note:
    """`facts` are what JSON can hold; arrays stand beside them by name."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Notes:
    """The notes of one user. Any number of threads and processes may use them at once."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def try_of(self, source: str) -> NotesOf | None:
        """Return the notes of a directory as it is now; None for a hub id. To be asked for before it is read."""
        files = _try_digest_of_files(source)
        return None if files is None else NotesOf(self._shelf, source, files)


class NotesOf:
    """The notes of one directory, as it was at one moment. Lives as long as a load."""

    def __init__(self, shelf: Shelf, source: str, files: str) -> None:
        self._shelf = shelf
        self._source = source
        self._files = files

    def try_read(self, kind: str, *settings: object) -> Note | None:
        """Return what was noted of the directory as it was then; None where nothing was."""
        import numpy as np

        data = self._shelf.try_read(_name(self._files, kind, settings))
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                arrays = {key: found[key] for key in found.files}
            return Note(json.loads(arrays.pop(JSON).tobytes()), arrays)
        except Exception as error:  # noqa: BLE001 - a damaged archive raises whatever; the note is made anew
            logger.warning("A note for the start of %s is damaged and not used: %s", self._source, error)
            return None

    def write(self, note: Note, kind: str, *settings: object) -> None:
        """Note what was found out about the directory, unless it has changed meanwhile: then nobody knows of which."""
        import numpy as np

        if _try_digest_of_files(self._source) != self._files:
            logger.info("%s changed while it was read, so nothing is noted for its next start", self._source)
            return
        data = io.BytesIO()
        arrays: dict[str, Any] = {JSON: np.frombuffer(json.dumps(dict(note.facts)).encode(), np.uint8), **note.arrays}
        np.savez(data, **arrays)
        self._shelf.write(_name(self._files, kind, settings), data.getvalue())


def user_notes() -> Notes | None:
    """Return this user's notes, in ~/.cache/kea/models; None where the user has no home."""
    shelf = user_shelf("models", MAX_BYTES)
    return None if shelf is None else Notes(shelf)


def _name(files: str, kind: str, settings: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr((files, _digest_of_code(), _versions(), settings)).encode())
    return f"{kind}-{digest.hexdigest()[:40]}.npz"


def _try_digest_of_files(source: str) -> str | None:
    """Return a checksum of all files of a directory that could be anything but weights; None where it is none, or they
    cannot all be read.
    """
    directory = Path(source)
    if not directory.is_dir():
        return None
    digest, num_bytes = hashlib.sha256(), 0
    try:
        for path in sorted(_small_files(directory)):
            num_bytes += path.stat().st_size
            if num_bytes > MAX_SMALL_BYTES:
                return None
            content = path.read_bytes()
            digest.update(f"{path.relative_to(directory)} {len(content)}\n".encode() + content)
    except OSError as error:  # a file that the load may have no use for; if it has, it says so
        logger.info("Nothing is noted of %s for its next start: %s", source, error)
        return None
    return digest.hexdigest()


def _small_files(directory: Path) -> Iterator[Path]:
    return (path for pattern in SMALL_FILES for path in directory.glob(pattern) if path.is_file())


@functools.cache
def _digest_of_code() -> str:
    """Return a checksum of the code that makes and reads notes."""
    room = Path(__file__).parent
    files = [*room.glob("*.py"), *room.glob("lean/*.py"), *(room.parent / "attention").glob("base.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    from importlib.metadata import version

    return tuple(version(library) for library in LIBRARIES)
