"""Where compiled kernels are kept, and when what is kept is stale. Knows no kernels.

numba keeps machine code beside the source file of a function and compiles anew when that file has changed, or the
processor. A kernel also holds what it calls in other files: so here the contents of all files with kernels count. And
it is kept in the user's cache, in a folder of these contents: so a second checkout or environment of the same version
starts warm, and going back to an earlier version does, too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import logging
import os
import pickle
import platform
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import IndexDataCacheFile

from kea.kernels.shelf import check_private

logger = logging.getLogger(__name__)

FOLDERS = ("kernels", "attention", "models/lean")
MAX_VERSIONS, UNUSED_S = 16, 86_400.0
"""Folders of kernels that are kept, about 3 MB each; one that was used within a day is not removed."""

# numba tells functions of one name apart (those that a factory makes) by a number that begins at 1 in every process. Of
# two kernels that two processes have compiled and a third one loads, functions could so have one name, and the linker
# keeps the first: the other kernel would call it. So each process begins somewhere else.
FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))


@functools.cache
def fingerprint() -> str:
    """Return a checksum of all source files that kernels are made of."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    digest.update(f"{platform.python_version()} {numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(path for folder in FOLDERS for path in (package / folder).glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def keep_on_disk(target: Any) -> None:
    """Let a dispatcher or a C callback of numba load and save its machine code.

    In the user's cache or, where that is read-only or another user could write to it, beside the module; where neither
    can be written it is compiled anew in every process, with a warning.
    """
    try:
        target.enable_caching()
    except RuntimeError as error:
        logger.warning("The compiled kernel %s cannot be kept on disk: %s", target.__name__, error)
        return
    cache = target._cache
    folder, file = try_folder(), cache._cache_file
    if folder is None:
        stamp = (file._source_stamp, fingerprint())
        cache._cache_file = KernelFile(cache._cache_path, cache._impl.filename_base, stamp)
        return
    own = hashlib.sha256(Path(inspect.getfile(cache._py_func)).read_bytes()).hexdigest()
    cache._cache_path = str(folder)
    cache._cache_file = KernelFile(str(folder), cache._impl.filename_base, (own, fingerprint()))


class KernelFile(IndexDataCacheFile):  # type: ignore[misc]
    """numba's index of a kernel's machine code, with files named by what they are the code of.

    numba numbers them by what it finds in the index: two processes that compile at once could give one number twice.
    Each file begins with a checksum: what a crash or a full disk has left of one is not run, and never ends a start.
    """

    def save(self, key: Any, data: Any) -> None:
        digest = hashlib.sha256(repr((key, self._source_stamp)).encode()).hexdigest()
        name = f"{self._index_name.removesuffix('.nbi')}.{digest[:16]}.nbc"
        try:
            overloads = self._load_index()
            self._save_data(name, data)
            self._save_index({**overloads, key: name})
        except OSError as error:
            logger.warning("The compiled kernel %s cannot be kept on disk: %s", self._index_name, error)

    def _load_index(self) -> dict[Any, str]:
        found = self._try_read(self._index_path)
        stamp, overloads = (None, {}) if found is None else pickle.loads(found)  # noqa: S301 - written by this user
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        found = self._try_read(self._data_path(name))
        return None if found is None else pickle.loads(found)  # noqa: S301 - written by this user

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, value: Any) -> None:
        data = self._dump(value)
        with self._open_for_write(path) as stream:
            stream.write(hashlib.sha256(data).digest() + data)

    @staticmethod
    def _try_read(path: str) -> bytes | None:
        """Return what was written to a file; None where that is not there as a whole."""
        try:
            found = Path(path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("The compiled kernel in %s is compiled anew: %s", path, error)
            return None
        size = hashlib.sha256().digest_size
        if hashlib.sha256(found[size:]).digest() != found[:size]:
            logger.warning("The compiled kernel in %s is damaged, or of another version: it is compiled anew", path)
            return None
        return found[size:]


@functools.cache
def try_folder() -> Path | None:
    """Return the folder of this version's kernels, ~/.cache/kea/kernels/CHECKSUM; None where none can be used."""
    try:
        folder = Path.home() / ".cache" / "kea" / "kernels" / fingerprint()[:16]
        is_new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for owned in (folder.parent, folder):
            check_private(owned)
        tempfile.TemporaryFile(dir=folder).close()  # numba would fail where it cannot write
        os.utime(folder)
    except (OSError, RuntimeError) as error:
        logger.warning("Compiled kernels are kept beside the package, not in the user's cache: %s", error)
        return None
    if is_new:
        _make_room(folder.parent)
    return folder


def _make_room(kept: Path) -> None:
    """Remove the versions that were not used for longest."""
    with contextlib.suppress(OSError):  # another process does the same
        versions = sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in versions[MAX_VERSIONS:]:
            if path.stat().st_mtime < time.time() - UNUSED_S:
                shutil.rmtree(path, ignore_errors=True)
