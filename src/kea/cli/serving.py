"""A server's run: the engine loaded, the service over it, the notice when it is ready, their end. Knows no options."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from kea import __version__
from kea.cli.console import LoadingView, err, out
from kea.engine.config import EngineConfig
from kea.models.source import GENERATION_FILES, SAMPLING_KEYS
from kea.server.config import ServerConfig
from kea.service import NativeFunction, ServiceConfig
from kea.types import Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from kea.engine.base import EngineInfo
    from kea.errors import KeaError
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


async def serve_until_stopped(order: ServeOrder) -> None:
    """Load, serve until a signal asks for the end, end the engine.

    Raises what prevents it from starting, and `EngineDied` where the engine was given up.
    """
    from kea.cluster import start_engine
    from kea.models import Tokenizer
    from kea.server.app import create_app
    from kea.server.run import Server, check_certificate, open_socket
    from kea.service import Service

    check_certificate(order.server.web)
    open_socket(order.server).close()  # an address that cannot be had is told now, not after the model was loaded
    model, revision = order.engine.model, order.engine.revision
    with LoadingView(f"Loading {order.server.model_names[0]}") as view:
        tokenizer = Tokenizer.load(model, revision=revision, chat_template=order.chat_template)
        server = replace(order.server, default_sampling=_default_sampling(order))
        engine = await start_engine(order.engine, "process", view.show)
    try:
        async with Service([engine], tokenizer, config=order.service, functions=order.functions) as service:
            app = create_app(server, engine, tokenizer, service, service.next_order)
            shown = replace(order, server=server)
            await run_while_answered(Server(app, lambda ready: _tell_ready(ready, engine.info, shown)), engine.given_up)
    finally:
        await engine.close()


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
