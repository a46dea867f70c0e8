"""Runs one driver inside the python of the system that it drives: orders come in, answers go out, one JSON line each.

Started as a file (`python -P answering.py DRIVER.py`) in environments that do not have Kea: imports the standard
library alone. Owns the pipe; does not know what an order measures. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

_STEPPING = Path(__file__).with_name("stepping.py")


def answer(driver: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order `{"op": name, ...arguments}`; whatever goes wrong is the answer.

    A driver says by `NotImplementedError` that its system has no such thing; an operation that it lacks is the same.
    """
    name = order.pop("op")
    operation: Callable[..., dict[str, Any]] | None = getattr(driver, name, None)
    if operation is None:
        return {"unsupported": f"its driver has no {name}"}
    try:
        return {"result": operation(**order)}
    except NotImplementedError as error:
        return {"unsupported": str(error)}
    except Exception as error:  # noqa: BLE001 - the other end reports it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def load_driver(path: str) -> Any:
    """Import the file at `path` and return what its `create_driver` makes, or its `create_engine` to be stepped."""
    module = load_module(Path(path))
    if hasattr(module, "create_driver"):
        return module.create_driver()
    return load_module(_STEPPING).Driver(module.create_engine())


def load_module(path: Path) -> Any:
    """Import a file that is in no package that this python knows."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def serve(driver: Any, orders: Iterable[str], answers: TextIO) -> None:
    """Answer every line of `orders` until their end."""
    for line in orders:
        found = answer(driver, json.loads(line))
        sys.stdout.flush()  # what was printed is in the log before the answer is out, however the process ends
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def main(path: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        driver = load_driver(path)
    except Exception as error:  # noqa: BLE001 - a system that cannot be imported is told once, then the process ends
        traceback.print_exc()
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        answers.flush()
        return
    serve(driver, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1])
