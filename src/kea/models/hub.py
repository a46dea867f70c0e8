"""Whether the Hugging Face hub can be reached, asked once before transformers asks it many times and waits each time.

Knows no models' files; `huggingface_hub` is imported where it is used.
"""

from __future__ import annotations

import logging

from kea.errors import ModelLoadFailed

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
HINT = "Give the directory of a model, or connect this machine; models that were fetched before need no hub."


def locate(hub_id: str, revision: str | None = None) -> str:
    """Return what to load from: the id where the hub answers, else the copy of the model in this machine's cache.

    Raises `ModelLoadFailed` where there is neither. Takes `TIMEOUT_S` at most where nothing answers.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    problem = _try_reach()
    if problem is None:
        return hub_id
    try:
        folder = snapshot_download(hub_id, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise ModelLoadFailed(
            f"There is no directory {hub_id} here and no copy of it in the cache, and {problem}.",
            hint=HINT,
            param="model",
        ) from None
    logger.warning("%s; the copy of %s in the cache is used", problem, hub_id)
    return str(folder)


def _try_reach() -> str | None:
    """Return None where the hub answers, whatever it says, and else why it does not."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    except Exception as error:  # noqa: BLE001 - whatever the hub's client raises, the model may be in the cache
        return f"the hub at {constants.ENDPOINT} does not answer ({str(error) or type(error).__name__})"
    return None
