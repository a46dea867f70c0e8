"""Attention: the plan's types, the backends, and the factory that picks one."""

from kea.attention.base import (
    AttentionBackend,
    CapturableBackend,
    LayerCache,
    LayerSpec,
    PreparedPlan,
    Rotary,
    Run,
    SequencePlan,
    StaticPlan,
    StaticShape,
    StepPlan,
)
from kea.attention.factory import BACKEND_NAMES, create_backend

__all__ = [
    "BACKEND_NAMES",
    "AttentionBackend",
    "CapturableBackend",
    "LayerCache",
    "LayerSpec",
    "PreparedPlan",
    "Rotary",
    "Run",
    "SequencePlan",
    "StaticPlan",
    "StaticShape",
    "StepPlan",
    "create_backend",
]
