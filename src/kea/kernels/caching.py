"""Where compiled kernels are kept, and when what is kept is stale. Knows no kernels.

numba keeps machine code beside the source file of a function and compiles anew when that file has changed, or the
processor. A kernel also holds what it calls in other files: so here the contents of all files with kernels count.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDERS = ("kernels", "attention", "models/lean")


@functools.cache
def fingerprint() -> str:
    """Return a checksum of all source files that kernels are made of."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (package / folder).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def keep_on_disk(target: Any) -> None:
    """Let a dispatcher or a C callback of numba load and save its machine code.

    Beside the module or, where that is read-only, in the user's cache; where neither can be written it is compiled anew
    in every process, with a warning.
    """
    try:
        target.enable_caching()
    except RuntimeError as error:
        logger.warning("The compiled kernel %s cannot be kept on disk: %s", target.__name__, error)
        return
    file = target._cache._cache_file
    file._source_stamp = (file._source_stamp, fingerprint())
