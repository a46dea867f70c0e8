"""What the commands of the recipe share: a mistake in what they are given, or an interrupt, ends in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kea.errors import KeaError

MISTAKE_STATUS = 2
INTERRUPT_STATUS = 130


class Mistake(Exception):
    """What a command was given cannot be used; its text is one sentence for whoever typed it."""


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """End the command with a sentence on stderr where its input is at fault; faults of ours keep their trace."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPT_STATUS)
    except (Mistake, OSError, KeaError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE_STATUS)


def need_files(folder: Path, names: Iterable[str], what: str) -> None:
    """Raise Mistake where a folder lacks a file that makes it `what`."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Mistake(f"{folder} is not {what}: it has no {', no '.join(missing)}")
