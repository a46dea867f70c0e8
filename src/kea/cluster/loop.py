"""The engine's loop: takes commands, steps, hands out events, on one thread of its own, wherever that runs.

A fault of the loop itself (not of a request) ends it with `Died`: whoever owns the channel opens it again.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence

from kea.cluster.base import Died, Loading, Message, Ready, Receiver
from kea.engine.base import Command
from kea.engine.config import EngineConfig
from kea.errors import EngineDied, KeaError, ModelLoadFailed
from kea.models.progress import LoadProgress

logger = logging.getLogger(__name__)

CLOSE: None = None
Inbox = queue.SimpleQueue["Sequence[Command] | None"]


def run_engine(config: EngineConfig, inbox: Inbox, receive: Receiver) -> None:
    """Load the model and serve commands until `CLOSE` arrives. Returns when the engine has ended."""
    try:
        from kea.engine.core import EngineCore  # imports torch: only here, on the engine's side

        core = EngineCore.load(config, report=lambda progress: receive([_loading(progress)]))
    except KeaError as error:
        receive([Died(error)])
        return
    except Exception as error:
        logger.exception("the model could not be loaded")
        receive([Died(ModelLoadFailed(f"{config.model} could not be loaded: {error}"))])
        return
    receive([Ready(core.info)])
    try:
        while _take(inbox, core.handle, core.wait_s):
            events: Sequence[Message] = core.step()
            if events:
                receive(events)
    except BaseException as error:  # a panic of a native library is no Exception, and must not end in silence
        logger.exception("the engine's loop failed")
        receive([Died(EngineDied(f"The engine failed: {error!r}."))])


def _loading(progress: LoadProgress) -> Loading:
    return Loading(progress.stage, progress.done / progress.total if progress.total else None)


def _take(inbox: Inbox, handle: Callable[[Command], None], wait_s: float | None) -> bool:
    """Hand over every command that is there, waiting so long for the first; False once the engine is to close."""
    while True:
        try:
            commands = inbox.get(block=wait_s != 0.0, timeout=wait_s)
        except queue.Empty:
            return True
        if commands is CLOSE:
            return False
        for command in commands:
            handle(command)
        wait_s = 0.0
