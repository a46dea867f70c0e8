"""Waiting in a test for something that another thread or task will bring about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Return when `condition` holds; fail the test when it does not within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
