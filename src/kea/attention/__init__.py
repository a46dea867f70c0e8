"""Attention: the plan's types, the backends, and the factory that picks one."""

from kea.attention.base import (
    AttentionBackend,
    LayerCache,
    LayerSpec,
    PreparedPlan,
    Run,
    SequencePlan,
    StepPlan,
)
from kea.attention.factory import BACKEND_NAMES, create_backend

__all__ = [
    "BACKEND_NAMES",
    "AttentionBackend",
    "LayerCache",
    "LayerSpec",
    "PreparedPlan",
    "Run",
    "SequencePlan",
    "StepPlan",
    "create_backend",
]
