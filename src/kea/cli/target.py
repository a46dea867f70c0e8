"""Which model a command runs: the one that was named, or the embedded one. Knows no engine and no server."""

from __future__ import annotations

from dataclasses import dataclass

from kea.engine.config import EngineConfig
from kea.errors import InvalidRequest, ModelLoadFailed


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is loaded from, and the name under which it is shown."""

    location: str
    name: str


def choose_model(model: str | None) -> ModelSource:
    """Return where to load from. Nothing is loaded, and no hub is asked.

    Raises `InvalidRequest` where a model is named that cannot be one, such as a directory that is not there, and
    `ModelLoadFailed` where the embedded model is asked for and not installed.
    """
    from kea.models import EMBEDDED_NAME, require_embedded_model
    from kea.models.describing import model_name
    from kea.models.source import check_source

    if model is None:
        return ModelSource(str(require_embedded_model()), EMBEDDED_NAME)
    try:
        check_source(model)
    except ModelLoadFailed as error:
        raise InvalidRequest(error.message, hint=error.hint, param="model") from None
    return ModelSource(model, model_name(model))


def check_machine(config: EngineConfig) -> None:
    """Raise `InvalidRequest` where the device or the threads asked for are not here; torch is asked only for those."""
    is_device_named = config.device not in ("auto", "cpu")
    if not is_device_named and config.num_threads is None:
        return
    from kea.engine.machine import check_num_threads, resolve_device

    if is_device_named:
        resolve_device(config.device)
    check_num_threads(config.num_threads)
