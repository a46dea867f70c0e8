"""The model that is installed with Kea. Owns its place and its name; reads no file of it."""

from __future__ import annotations

from pathlib import Path

from kea.errors import ModelLoadFailed

EMBEDDED_NAME = "kea-embedded"


def embedded_model_path() -> Path:
    """Return the directory of the embedded model, whether its weights are there or not."""
    return Path(__file__).resolve().parent / "embedded"


def require_embedded_model() -> Path:
    """Return the directory of the embedded model. Raises `ModelLoadFailed` where its weights are missing."""
    path = embedded_model_path()
    if not (path / "model.safetensors").exists():
        raise ModelLoadFailed(
            f"The embedded model is not installed: {path} has no weights.",
            hint="Name a model, or install Kea again.",
            param="model",
        )
    return path
