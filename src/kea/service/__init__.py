"""The service: sessions, their variables, and the execution of their calls on engines."""

from __future__ import annotations

from kea.service.config import ServiceConfig
from kea.service.metering import Meter, OutputTimer
from kea.service.native import NativeFunction
from kea.service.service import Service, ServiceSnapshot, check_secret
from kea.service.session import Session

__all__ = [
    "Meter",
    "NativeFunction",
    "OutputTimer",
    "Service",
    "ServiceConfig",
    "ServiceSnapshot",
    "Session",
    "check_secret",
]
