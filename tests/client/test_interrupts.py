"""A Ctrl-C while a variable is read: the reader gets it at once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

import kea
from tests.client.worlds import WORLDS


@kea.function
def echo(text: kea.Input, answer: kea.Output) -> None:
    """{{text}}{{answer}}"""


def read_by_get(variable: kea.Variable) -> None:
    variable.get()


def read_by_stream(variable: kea.Variable) -> None:
    for _ in variable.stream():
        continue


@pytest.mark.parametrize("world_name", WORLDS)
@pytest.mark.parametrize("read", [read_by_get, read_by_stream])
def test_ctrl_c_interrupts_a_reader(world_name: str, read: Callable[[kea.Variable], None]) -> None:
    with WORLDS[world_name]() as world, world.session() as session:
        world.on_loop(world.engine.hold)
        variable = echo("never ends")
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            read(variable)
        timer.join()
        assert session.cancel([variable])
        world.on_loop(world.engine.release)
