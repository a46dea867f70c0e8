"""Loads: what is sent, when, to which server, and what came back."""

from kea.bench.load.client import LoadClient, RequestResult, RequestShape, Target
from kea.bench.load.driver import Driver, RoundResult
from kea.bench.load.plan import Planned, Workload, build_plan

__all__ = [
    "Driver",
    "LoadClient",
    "Planned",
    "RequestResult",
    "RequestShape",
    "RoundResult",
    "Target",
    "Workload",
    "build_plan",
]
