"""What application authors import, through `kea`: functions, sessions, variables, connections."""

from __future__ import annotations

from kea.client.annotations import LATENCY, THROUGHPUT, TPOT, TTFT, Input, Output
from kea.client.connection import Connection, connect, create_connection
from kea.client.function import SemanticFunction, function
from kea.client.gathering import agather, gather
from kea.client.rendering import Rendered
from kea.client.session import Session
from kea.client.variable import Variable

__all__ = [
    "LATENCY",
    "THROUGHPUT",
    "TPOT",
    "TTFT",
    "Connection",
    "Input",
    "Output",
    "Rendered",
    "SemanticFunction",
    "Session",
    "Variable",
    "agather",
    "connect",
    "create_connection",
    "function",
    "gather",
]
