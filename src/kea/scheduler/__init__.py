"""Which call runs on which engine, and when. `create_scheduler` is the factory."""

from __future__ import annotations

from kea.scheduler.base import CallKey, EngineLoad, Placement, QueuedCall, Scheduler
from kea.scheduler.fifo import FifoScheduler

__all__ = ["CallKey", "EngineLoad", "FifoScheduler", "Placement", "QueuedCall", "Scheduler", "create_scheduler"]


def create_scheduler() -> Scheduler:
    """Create the scheduler that services use unless they are given another."""
    return FifoScheduler()
