"""Running the application: a socket, uvicorn, a ready notice, signals, a shutdown that answers every request.

Knows no endpoints. Engine, tokenizer and service belong to the caller, who closes them after `Server.run` has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from kea.errors import InvalidRequest
from kea.server.config import ServerConfig, WebConfig
from kea.server.state import AppState

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
LAST_WORDS_S = 5
"""How long answers that were cut may take to reach their clients."""
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Ready:
    """The server accepts requests."""

    host: str
    port: int
    url: str
    model: str


OnReady = Callable[[Ready], None]
OnStop = Callable[[int, float], None]
"""Told, when an end is asked for, how many requests run and how many seconds they may still go on."""


class Server:
    """One run of the application, until SIGINT or SIGTERM (or `stop`, from the event loop) asked for the end and every
    request was answered.

    The first of them lets running requests end within the configured grace, the second ends them at once. `run` raises
    `InvalidRequest` where the address cannot be had, or the certificate.
    """

    def __init__(
        self,
        app: Starlette,
        on_ready: OnReady | None = None,
        on_stop: OnStop | None = None,
        *,
        handles_signals: bool = True,
    ) -> None:
        self._state: AppState = app.state.kea
        self._on_ready = on_ready
        self._handles_signals = handles_signals
        config = self._state.config
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_certfile=config.web.ssl_certfile,
                ssl_keyfile=config.web.ssl_keyfile,
                timeout_graceful_shutdown=int(config.shutdown_grace_s) + LAST_WORDS_S,
                backlog=BACKLOG,
            ),
            self._state,
            self._tell_ready,
            on_stop,
        )

    async def run(self) -> None:
        """Serve until stopped."""
        config = self._state.config
        check_certificate(config.web)
        with open_socket(config) as listener:
            self._listener = listener
            with self._uvicorn.signals() if self._handles_signals else contextlib.nullcontext():
                await self._uvicorn._serve([listener])

    def stop(self) -> None:
        """Ask for the end: the first time with grace, then at once."""
        self._uvicorn.ask_to_stop()

    def _tell_ready(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if self._state.config.web.ssl_certfile is None else "https"
        ready = Ready(host, port, f"{scheme}://{shown}:{port}", self._state.model.name)
        logger.info("serving %s at %s", ready.model, ready.url)
        if self._on_ready is not None:
            self._on_ready(ready)


class _Uvicorn(uvicorn.Server):
    """uvicorn, with our readiness and our end."""

    def __init__(
        self, config: uvicorn.Config, state: AppState, on_started: Callable[[], None], on_stop: OnStop | None
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_started = on_started
        self._on_stop = on_stop
        self._asked = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_started()

    async def main_loop(self) -> None:
        """Wait for the end. uvicorn looks ten times a second; its clock for the Date header needs one tick a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, let requests end or end them, wait until their answers are sent."""
        drained = asyncio.create_task(self._state.drain())
        await super().shutdown(sockets)
        await asyncio.wait([drained], timeout=LAST_WORDS_S)
        if not drained.done():
            logger.error("%d requests did not end; they are left", self._state.lifecycle.num_running)
            drained.cancel()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take the signals that ask for an end, and give them back behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self.ask_to_stop)

    def ask_to_stop(self) -> None:
        is_again, num_running = self.should_exit, self._state.lifecycle.num_running
        if self._on_stop is not None and (num_running or not is_again):
            self._on_stop(num_running, 0.0 if is_again else self._state.config.shutdown_grace_s)
        if is_again:
            self._state.lifecycle.end()
        self.should_exit = True
        self._asked.set()


def open_socket(config: ServerConfig) -> socket.socket:
    """Return a listening socket at the configured address. Raises `InvalidRequest` where it cannot be had."""
    try:
        return _listen(config.host.strip("[]"), config.port)
    except OSError as error:
        raise InvalidRequest(
            f"Cannot listen on {config.host}:{config.port}: {error.strerror or error}.",
            param="port",
            hint="Choose another port; 0 takes a free one.",
        ) from error


def check_certificate(web: WebConfig) -> None:
    """Raise `InvalidRequest` for a certificate and a key that cannot be read, or do not belong together."""
    if web.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(web.ssl_certfile, web.ssl_keyfile, password=_refuse_password)
    except OSError as error:  # ssl's own errors are among them
        raise InvalidRequest(
            f"ssl_certfile {web.ssl_certfile!r} with ssl_keyfile {web.ssl_keyfile!r} cannot be used: "
            f"{error.strerror or error}.",
            param="ssl_certfile",
        ) from error


def _refuse_password() -> str:
    raise InvalidRequest("the private key is encrypted; it must be readable without a password.", param="ssl_keyfile")


def _listen(host: str, port: int) -> socket.socket:
    """Bind and listen. The protocol is named: asyncio switches Nagle's algorithm off only then (it costs 40 ms)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    family, kind, proto, _, address = found[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
