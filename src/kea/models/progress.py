"""Progress of a load, as plain numbers. Owns the bridge from the progress bars of the loading libraries to a callback.

The bars themselves never appear: the library does not print. Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal["download", "weights", "check"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`done` of `total` units of a stage: bytes while downloading, tensors while reading weights, 1 for the check."""

    stage: Stage
    done: int
    total: int


ProgressCallback = Callable[[LoadProgress], None]
Report = Callable[[Stage, int, int], None]


class SilentBar:
    """Stands in for a tqdm bar: iterates, counts, reports, shows nothing. Every other bar method does nothing."""

    def __init__(self, report: Report, iterable: Any = None, *, total: int | None = None, unit: str = "it") -> None:
        self._report = report
        self._iterable = iterable
        self._stage: Stage = "download" if unit == "B" else "weights"
        self.total = total if total is not None else _length_of(iterable)
        self.n = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update(1)

    def update(self, n: int | float | None = 1) -> None:
        self.n += int(n or 0)
        self._report(self._stage, self.n, int(self.total or 0))

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _length_of(iterable: Any) -> int | None:
    return len(iterable) if hasattr(iterable, "__len__") else None


@contextmanager
def reporting(callback: ProgressCallback | None) -> Iterator[Report]:
    """Send the bars of transformers to `callback` (None: nowhere) while the block runs."""
    from transformers.utils import logging

    def report(stage: Stage, done: int, total: int) -> None:
        if callback is not None:
            callback(LoadProgress(stage, done, total))

    def make_bar(_factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SilentBar:
        kept = {key: kwargs[key] for key in ("total", "unit") if key in kwargs}
        return SilentBar(report, *args[:1], **kept)

    previous = logging.set_tqdm_hook(make_bar)
    try:
        yield report
    finally:
        logging.set_tqdm_hook(previous)
