"""A driver of no system: what its answers say follows from the orders, and some orders go wrong on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any


class Driver:
    """Takes `step_s` for every step it reports, without spending it."""

    def __init__(self) -> None:
        self._step_s = 0.0

    def load(self, step_s: float = 0.01, fail: str = "", **_: Any) -> dict[str, Any]:
        sys.stdout.write("libraries print what they like\n")
        if fail:
            raise RuntimeError(fail)
        self._step_s = step_s
        return {"version": "fake 1", "note": f"threads {_.get('threads')}"}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        return {"step_s": [self._step_s] * steps, "num_prompts": len(prompts)}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        return {"seconds": self._step_s * len(prompt)}

    def warm(self, prompt: list[int]) -> dict[str, Any]:
        raise NotImplementedError("no cache")

    def wait(self, seconds: float) -> dict[str, Any]:
        time.sleep(seconds)
        return {}

    def start_child(self, seconds: int) -> dict[str, Any]:
        """Start a process that holds none of this one's pipes."""
        none = subprocess.DEVNULL
        return {"pid": subprocess.Popen(["sleep", str(seconds)], stdin=none, stdout=none, stderr=none).pid}

    def die(self) -> dict[str, Any]:
        os.write(2, b"something broke\n")
        os._exit(3)


def create_driver() -> Driver:
    return Driver()
