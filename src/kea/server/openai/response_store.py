"""Where responses are kept: in memory, bounded, for a time, each for its own tenant. Knows no bodies and no engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from kea.errors import LimitExceeded, NotFound
from kea.server.openai.response_run import ResponseRun

Key = tuple[str, str]


class ResponseStore:
    """Keeps at most `max_responses`, each for `keep_s` seconds after its end. Lives as long as the server."""

    def __init__(self, max_responses: int, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_responses = max_responses
        self._keep_s = keep_s
        self._clock = clock
        self._runs: dict[Key, ResponseRun] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._runs)

    def put(self, tenant: str, run: ResponseRun) -> None:
        """Keep a response. One that has ended gives way: the oldest of the tenant that has the most, so that nobody
        pushes out what others keep. Raises `LimitExceeded` when all still run.
        """
        self._expire()
        if len(self._runs) >= self._max_responses:
            num_kept = Counter(owner for owner, _ in self._runs)
            ended = (key for key, kept in self._runs.items() if kept.has_ended)
            oldest = max(ended, key=lambda key: num_kept[key[0]], default=None)  # the first of those with the most
            if oldest is None:
                raise LimitExceeded(
                    f"{len(self._runs)} stored responses still run, as many as are kept.", param="store"
                )
            del self._runs[oldest]
        self._runs[tenant, run.reply.id] = run

    def get(self, tenant: str, response_id: str, *, param: str = "response_id") -> ResponseRun:
        """Return a tenant's response. Raises `NotFound`, also when its time is over."""
        self._expire()
        run = self._runs.get((tenant, response_id))
        if run is None:
            raise NotFound(
                f"There is no response {response_id[:80]!r}.",
                hint=f"Responses are kept for {self._keep_s:g} s after their end, in memory only.",
                param=param,
            )
        return run

    def delete(self, tenant: str, response_id: str) -> ResponseRun:
        """Forget a response and return it. Raises `NotFound`."""
        run = self.get(tenant, response_id)
        del self._runs[tenant, response_id]
        return run

    def end(self, run: ResponseRun) -> None:
        """Let the time of a response that has ended begin."""
        run.expires_s = self._clock() + self._keep_s

    def _expire(self) -> None:
        now_s = self._clock()
        for key in [key for key, run in self._runs.items() if run.expires_s <= now_s]:
            del self._runs[key]
