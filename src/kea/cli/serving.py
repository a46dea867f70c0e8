"""A server's run: the engine loaded, the service over it, the notice when it is ready, their end. Knows no options."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from kea import __version__
from kea.cli.console import LoadingView, err, out
from kea.engine.config import EngineConfig
from kea.errors import KeaError
from kea.models.source import GENERATION_FILES, SAMPLING_KEYS
from kea.server.config import ServerConfig
from kea.service import NativeFunction, ServiceConfig
from kea.types import Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from kea.cluster import EngineClient
    from kea.engine.base import EngineInfo
    from kea.models import Tokenizer
    from kea.server.run import Ready, Server

AUTO, NONE = "auto", "none"
LAST_ANSWERS_S = 1.0
"""How long requests may take to find out themselves that the engine is given up, before they are ended."""


@dataclass(frozen=True, slots=True)
class ServeOrder:
    """What is to be served, and how its readiness is told: lines for people, or a line of JSON for a program.

    `generation_config`: where the default sampling stands: AUTO (beside the model), NONE, or a directory.
    `chat_template`: in place of the model's own.
    """

    engine: EngineConfig
    service: ServiceConfig
    server: ServerConfig
    functions: Mapping[str, NativeFunction] = field(default_factory=dict)
    is_json: bool = False
    generation_config: str = AUTO
    chat_template: str | None = None


class ServerEnded(BaseException):
    """`kea serve` is over: its process may end at once. `reason` is None where the server was told to stop.

    Else it is a `KeaError`, or the `KeyboardInterrupt` that came before it was ready. No `Exception`: the commands'
    framework is to pass it on.
    """

    def __init__(self, reason: BaseException | None) -> None:
        super().__init__(reason)
        self.reason = reason


def run_server(order: ServeOrder) -> NoReturn:
    """Serve until the end, and raise `ServerEnded`."""
    try:
        asyncio.run(serve_until_stopped(order))
    except (KeaError, KeyboardInterrupt) as reason:
        raise ServerEnded(reason) from reason
    raise ServerEnded(None)


async def serve_until_stopped(order: ServeOrder) -> None:
    """Load, serve until a signal asks for the end, end the engine. Runs in the main thread.

    Raises what prevents it from starting, and `EngineDied` where the engine was given up. While it loads, SIGTERM is
    what SIGINT is: an interrupt that waits for nothing.
    """
    from kea.cluster.abandoned import call_on_thread

    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    await call_on_thread(lambda: _check(order))
    with LoadingView(f"Loading {order.server.model_names[0]}") as view:
        engine, tokenizer, server = await _load(order, view)
    try:
        await _serve(replace(order, server=server), engine, tokenizer)
    finally:
        await engine.close()


async def _load(order: ServeOrder, view: LoadingView) -> tuple[EngineClient, Tokenizer, ServerConfig]:
    """Start the engine and meanwhile read what the server needs, which is as much work: most of it are imports.

    Where that fails the engine is ended.
    """
    from kea.cluster import start_engine
    from kea.cluster.abandoned import call_on_thread

    starting = asyncio.ensure_future(start_engine(order.engine, "process", view.show))
    try:
        tokenizer, server = await call_on_thread(lambda: _prepare(order))
    except BaseException:
        starting.cancel()
        (engine,) = await asyncio.gather(starting, return_exceptions=True)
        if not isinstance(engine, BaseException):
            await engine.close()
        raise
    return await starting, tokenizer, server


def _check(order: ServeOrder) -> None:
    """Raise what would prevent it from starting, as far as that can be told before anything is loaded."""
    from kea.models.chat import check_template
    from kea.server.run import check_certificate, open_socket

    if order.chat_template is not None:
        check_template(order.chat_template)
    check_certificate(order.server.web)
    open_socket(order.server).close()


def _prepare(order: ServeOrder) -> tuple[Tokenizer, ServerConfig]:
    """Read what the server itself needs of the model: its tokenizer, and the sampling that it recommends.

    Raises also what the engine's settings and the model's config forbid: the engine would only say so once it loads.
    """
    from kea.engine.checking import check_engine
    from kea.models import Tokenizer

    check_engine(order.engine)
    model, revision = order.engine.model, order.engine.revision
    tokenizer = Tokenizer.load(model, revision=revision, chat_template=order.chat_template)
    return tokenizer, replace(order.server, default_sampling=_default_sampling(order))


async def _serve(order: ServeOrder, engine: EngineClient, tokenizer: Tokenizer) -> None:
    from kea.server.app import create_app
    from kea.server.run import SIGNALS, Server
    from kea.service import Service

    async with Service([engine], tokenizer, config=order.service, functions=order.functions) as service:
        app = create_app(order.server, engine, tokenizer, service, service.next_order)
        server = Server(app, lambda ready: _tell_ready(ready, engine.info, order), on_stop=_tell_stop)
        try:
            await run_while_answered(server, engine.given_up)
        finally:
            for number in SIGNALS:  # one that comes late asks for what is being done
                signal.signal(number, signal.SIG_IGN)


async def run_while_answered(server: Server, given_up: asyncio.Future[KeaError]) -> None:
    """Run until the server is stopped, or the engine is given up: then fail what waits, and raise why.

    A process that supervises this one can start another; one that stayed would refuse everything for ever.
    """
    loop = asyncio.get_running_loop()

    def stop(_: object) -> None:
        server.stop()
        loop.call_later(LAST_ANSWERS_S, server.stop)

    given_up.add_done_callback(stop)
    await server.run()
    given_up.remove_done_callback(stop)
    if given_up.done():
        raise given_up.result()


def _tell_stop(num_requests: int, grace_s: float) -> None:
    requests = f"{num_requests:,} request{'s' * (num_requests != 1)}"
    if num_requests == 0:
        err.print("Shutting down.")
    elif grace_s:
        err.print(f"Shutting down: waiting up to {grace_s:g} s for {requests}; Ctrl-C again ends them now.")
    else:
        err.print(f"Shutting down: ending {requests} now.")


def _default_sampling(order: ServeOrder) -> Sampling:
    from kea.models import read_default_sampling

    if order.generation_config == NONE:
        return Sampling()
    if order.generation_config == AUTO:
        return read_default_sampling(order.engine.model, revision=order.engine.revision)
    return read_default_sampling(order.generation_config, GENERATION_FILES)


def _tell_ready(ready: Ready, info: EngineInfo, order: ServeOrder) -> None:
    if order.is_json:
        print(json.dumps({**asdict(ready), "pid": os.getpid()}), flush=True)
    _write_notice(err if order.is_json else out, ready, info, order.server)


def _write_notice(console: Console, ready: Ready, info: EngineInfo, config: ServerConfig) -> None:
    kept = f"{info.num_pages * info.page_tokens:,} tokens in {info.kv_cache_dtype}"
    console.print(f"[bold]kea {__version__}[/] serves [bold]{ready.model}[/] at [bold cyan]{ready.url}[/]")
    rows = (
        ("model", f"{_arithmetic(info)}, attention by {info.backend}, context {info.max_model_len:,} tokens"),
        ("memory", f"keys and values of {kept}; up to {info.max_num_seqs:,} sequences in a step"),
        ("decoding", _decoding(info)),
        ("sampling", _sampling(config.default_sampling)),
        ("keys", _keys(config)),
        ("OpenAI", f"base_url={ready.url}/v1 (chat completions, completions, responses)"),
        ("programs", f"kea run FILE.py --url {ready.url}"),
    )
    for name, text in rows:
        if text:
            console.print(f"  [dim]{name:10}[/]{text}")
    console.print("[dim]Ctrl-C ends it.[/]")


def _arithmetic(info: EngineInfo) -> str:
    weights = f", weights in {info.quantize}" if info.quantize is not None else ""
    return f"{info.dtype} on {info.device}{weights}"


def _decoding(info: EngineInfo) -> str:
    """Tell what was asked for beside the defaults: guesses, an objective; nothing without either."""
    parts = []
    if info.num_speculative_tokens:
        parts.append(f"up to {info.num_speculative_tokens} tokens guessed by prompt lookup")
    if info.tpot_objective_s is not None:
        parts.append(f"steps that decode stay below {info.tpot_objective_s * 1e3:g} ms where they can")
    return "; ".join(parts)


def _sampling(default: Sampling) -> str:
    """Tell the model's recommendations; nothing where there are none."""
    neutral = Sampling()
    named = [name for name in SAMPLING_KEYS if getattr(default, name) != getattr(neutral, name)]
    values = ", ".join(f"{name} {getattr(default, name):g}" for name in named)
    return f"{values} where a request of OpenAI's form names none (generation_config.json)" if values else ""


def _keys(config: ServerConfig) -> str:
    num_keys = len(config.api_keys)
    if num_keys:
        return f"{num_keys} API key{'s' * (num_keys > 1)}; requests without one are refused"
    if config.insecure:
        return "none, and others may reach it: --insecure was given"
    return "none: only this machine reaches it"
