"""Python files that users give: an application with `main(session, ...)`, native functions. Calls nothing in them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kea.errors import InvalidRequest

MAIN = "main"
EXPECTED = "An application has a function main(session), which may take further arguments as strings."


@dataclass(frozen=True, slots=True)
class Application:
    """What `kea run` runs: `main` gets a session and the arguments; a coroutine function is awaited."""

    path: Path
    main: Callable[..., Any]

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.main)

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Raise `InvalidRequest` where `main` does not take a session and these arguments."""
        signature = inspect.signature(self.main)
        try:
            signature.bind(None, *arguments)
        except TypeError:
            raise InvalidRequest(
                f"{MAIN}{signature} of {self.path} does not take a session and {_count(arguments)}.",
                hint=EXPECTED,
                param="arguments",
            ) from None


def load_application(path: Path) -> Application:
    """Run the file's definitions and return its application. Raises `InvalidRequest` where there is none.

    What the file itself raises is passed on. Its folder goes to the front of the import path, as for a script.
    """
    main = getattr(_execute(path, EXPECTED), MAIN, None)
    if not callable(main):
        raise InvalidRequest(f"{path} has no function {MAIN}.", hint=EXPECTED, param="file")
    return Application(path, main)


def load_functions(path: Path) -> dict[str, Callable[..., Any]]:
    """Return the functions that a file defines, by name, without those that begin with an underscore."""
    expected = "It is a Python file whose functions take and return strings."
    module = _execute(path, expected)
    functions: dict[str, Callable[..., Any]] = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if not functions:
        raise InvalidRequest(f"{path} defines no function.", hint=expected, param="functions")
    return functions


def _execute(path: Path, expected: str) -> ModuleType:
    if not path.is_file():
        raise InvalidRequest(f"There is no file {path}.", hint=expected, param="file")
    if path.suffix != ".py":
        raise InvalidRequest(f"{path} is no Python file.", hint=expected, param="file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"kea_application_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRequest(f"{path} cannot be read as Python.", param="file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _count(arguments: Sequence[str]) -> str:
    return "no arguments" if not arguments else f"{len(arguments)} argument{'s' * (len(arguments) > 1)}"
