"""Functions that the operator registered: Python callables by name, run on threads. Knows no engine.

A function receives the call's inputs as keyword arguments (texts of variables as strings) and returns a string, or for
several outputs a mapping from their names to strings. A thread cannot be stopped: at a timeout the call fails and the
function runs on until it returns; the number of threads bounds what such functions can hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from kea.errors import CallFailed, DeadlineExceeded, KeaError, NotFound
from kea.program.call import NativeCallSpec, VariableRef
from kea.service.session import Session

logger = logging.getLogger(__name__)

NativeFunction = Callable[..., str | Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class NativeRunner:
    """Runs native calls on the threads of `executor`, each within `timeout_s`."""

    functions: Mapping[str, NativeFunction]
    executor: ThreadPoolExecutor
    timeout_s: float

    def check(self, call: NativeCallSpec) -> None:
        """Raise `NotFound` for a function that is not registered."""
        if call.function not in self.functions:
            known = ", ".join(sorted(self.functions)) or "none"
            raise NotFound(
                f"there is no native function {call.function[:80]!r} here; registered are: {known}.", param="function"
            )

    async def run(self, call: NativeCallSpec, session: Session) -> None:
        """Run the function and set the call's outputs."""
        arguments = {item.name: _value(item.value, session) for item in call.inputs}
        work = partial(self.functions[call.function], **arguments)
        future = asyncio.get_running_loop().run_in_executor(self.executor, work)
        try:
            result = await asyncio.wait_for(future, self.timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the native function {call.function!r} took longer than {self.timeout_s:g} s."
            ) from None
        except KeaError:
            raise
        except Exception as error:
            logger.warning("native function %s failed", call.function, exc_info=error)
            raise CallFailed(f"the native function {call.function!r} raised {type(error).__name__}: {error}") from error
        _set_outputs(call, result, session)


def _value(value: Any, session: Session) -> Any:
    return session.value_of(value.variable_id) if isinstance(value, VariableRef) else value


def _set_outputs(call: NativeCallSpec, result: object, session: Session) -> None:
    if isinstance(result, str) and len(call.outputs) == 1:
        result = {call.outputs[0].name: result}
    names = {output.name for output in call.outputs}
    if (
        not isinstance(result, Mapping)
        or set(result) != names
        or not all(isinstance(item, str) for item in result.values())
    ):
        raise CallFailed(
            f"the native function {call.function!r} returned {type(result).__name__}; it must return a string for a "
            f"single output, or a mapping with a string for each of: {', '.join(sorted(names))}."
        )
    for output in call.outputs:
        session.variables[output.variable_id].write(result[output.name])
        session.finish_output(output.variable_id)
