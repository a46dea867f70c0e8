"""Compiles constraints beside the engine's loop, one at a time; the others go on meanwhile. Knows no contexts."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

from kea.engine.constraints import ConstraintCompiler, ConstraintState
from kea.types import Constraint

GRACE_S = 0.002  # most grammars that were compiled before, and many small ones, are there by then


class Compilations:
    """The constraints that are being compiled. Lives as long as its engine; its thread ends with it."""

    def __init__(self, compiler: ConstraintCompiler) -> None:
        self._compiler = compiler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kea-constraints")
        self._pending: dict[Constraint, Future[ConstraintState]] = {}

    def try_compile(self, constraint: Constraint) -> ConstraintState | None:
        """Return the constraint's state before the first token, or None while it is being compiled: ask again.

        Raises as `ConstraintCompiler.compile` does.
        """
        future = self._pending.get(constraint)
        if future is None:
            # Whoever never came back for one that is done was cancelled; if not, asking again finds it in the cache.
            self._pending = {other: its for other, its in self._pending.items() if not its.done()}
            future = self._pending[constraint] = self._thread.submit(self._compiler.compile, constraint)
            wait([future], GRACE_S)
        if not future.done():
            return None
        del self._pending[constraint]
        return future.result()
