"""`kea serve`: its options, and what they mean to engine, service and server. Runs nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kea.bench.integers import parse_bytes
from kea.cli import options
from kea.cli.application import load_functions
from kea.cli.running import showing_own_errors
from kea.cli.serving import AUTO, NONE, ServeOrder, run_server
from kea.cli.target import check_machine, choose_model
from kea.engine.config import DecodingConfig, EngineConfig
from kea.errors import InvalidRequest, Unsupported
from kea.server.config import ApiKey, Limits, ServerConfig, WebConfig
from kea.server.parsers import REASONING_PARSERS, TOOL_CALL_PARSERS
from kea.service import NativeFunction, ServiceConfig
from kea.types import Speculation


def _server(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=options.SERVER, **settings)


def serve(
    model: options.Model = None,
    *,
    host: Annotated[str, _server("Address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, _server("Port to listen on; 0 takes a free one.", metavar="PORT")] = 8000,
    api_key: Annotated[
        list[str] | None,
        _server(
            "A key that clients must send: 8 ASCII characters or more, no space. Repeatable; the variable may hold "
            "several, with spaces between.",
            envvar="KEA_API_KEY",
            show_envvar=True,
            show_default=False,
            metavar="KEY",
        ),
    ] = None,
    insecure: Annotated[bool, _server("Listen without API keys where others can reach it.", "--insecure")] = False,
    served_model_name: Annotated[
        list[str] | None,
        _server("The model's name for clients. Repeatable; the first is reported.", metavar="NAME"),
    ] = None,
    no_parrot_routes: Annotated[bool, _server("Leave out the API of ParrotServe's clients.", "--no-parrot-routes")] = (
        False
    ),
    tool_call_parser: Annotated[
        str, _server(f"How tool calls are found in outputs: {', '.join(TOOL_CALL_PARSERS)}.", metavar="NAME")
    ] = "auto",
    reasoning_parser: Annotated[
        str, _server(f"How reasoning is told from the answer: {', '.join(REASONING_PARSERS)}.", metavar="NAME")
    ] = "auto",
    chat_template: Annotated[
        str | None,
        _server("A file with the chat template, or the template itself; the model's by default.", metavar="FILE"),
    ] = None,
    generation_config: Annotated[
        str,
        _server(
            "Whose generation_config.json gives the sampling that requests leave out: auto (the model's), none, or a "
            "directory.",
            metavar="WHERE",
        ),
    ] = AUTO,
    allowed_origins: Annotated[
        list[str] | None,
        _server("A web page whose scripts may ask this server, or * for all. Repeatable.", metavar="ORIGIN"),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        _server(
            "A name, besides those of this machine, under which the server may be asked, or * for any. Repeatable.",
            metavar="HOST",
        ),
    ] = None,
    ssl_certfile: Annotated[
        str | None, _server("A PEM file with the certificate and its chain: the server speaks HTTPS.", metavar="FILE")
    ] = None,
    ssl_keyfile: Annotated[
        str | None,
        _server("A PEM file with the certificate's private key; in its own file by default.", metavar="FILE"),
    ] = None,
    max_body_bytes: Annotated[str, _server("Largest body of a request.", metavar="SIZE")] = "32MiB",
    max_requests_per_key: Annotated[int, _server("Most requests of one key at once.", metavar="COUNT")] = 4096,
    max_sessions_per_key: Annotated[int, _server("Most open sessions of one key.", metavar="COUNT")] = 1000,
    max_pending_calls_per_key: Annotated[
        int, _server("Most calls of one key that have not ended.", metavar="COUNT")
    ] = 100_000,
    max_session_bytes_per_key: Annotated[
        str, _server("Most memory that the variables and programs of one key's open sessions hold.", metavar="SIZE")
    ] = "1GiB",
    session_idle_s: Annotated[
        float, _server("Close a session that was not used for this long.", metavar="SECONDS")
    ] = 3600.0,
    session_lease_s: Annotated[
        float,
        _server("Cancel a session's calls after this long without a request or a reader.", metavar="SECONDS"),
    ] = 60.0,
    functions: Annotated[
        Path | None,
        _server("A Python file: programs may call the functions that it defines.", metavar="FILE.py"),
    ] = None,
    shutdown_grace_s: Annotated[
        float, _server("How long requests may go on after the first Ctrl-C or SIGTERM.", metavar="SECONDS")
    ] = 30.0,
    json_ready: Annotated[
        bool, _server("When ready, print one line of JSON: host, port, url, model, pid.", "--json-ready")
    ] = False,
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    max_num_batched_tokens: options.MaxNumBatchedTokens = 2048,
    kv_memory: options.KvMemory = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    num_threads: options.NumThreads = None,
    quantize: options.Quantize = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    revision: options.Revision = None,
    tpot_objective_ms: options.TpotObjectiveMs = None,
    max_burst_ms: options.MaxBurstMs = 25.0,
    num_speculative_tokens: options.NumSpeculativeTokens = 0,
    prompt_lookup_min: options.PromptLookupMin = 2,
    prompt_lookup_max: options.PromptLookupMax = 4,
    enable_lora: Annotated[bool, typer.Option("--enable-lora", hidden=True)] = False,
    tensor_parallel_size: Annotated[int, typer.Option(hidden=True)] = 1,
) -> None:
    """Serve a model: OpenAI's API, and Kea's own for whole programs.

    Only this machine reaches it, unless --host says otherwise; that needs an
    API key (--api-key).

    Ctrl-C or SIGTERM stops it: requests that run may go on for
    --shutdown-grace-s, new ones are refused; a second one ends them at once, each
    with an error. Exit status: 0 stopped, 130 interrupted before it was ready,
    1 failed (the engine died too often), 2 wrong usage or input.

    Examples:

        kea serve
        kea serve ./Qwen3-0.6B --max-model-len 8K --kv-memory 4GiB
        kea serve Qwen/Qwen3-0.6B --host 0.0.0.0 --api-key SECRET
        kea serve --port 0 --json-ready
    """
    _check_refused(enable_lora=enable_lora, tensor_parallel_size=tensor_parallel_size)
    source = choose_model(model)
    speculation = Speculation(num_speculative_tokens, prompt_lookup_min, prompt_lookup_max)
    config = EngineConfig(
        model=source.location,
        dtype=dtype,
        device=device,
        kv_memory_bytes=kv_memory,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        decoding=_decoding(tpot_objective_ms, max_burst_ms, speculation),
        num_threads=num_threads,
        revision=revision,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
    )
    server = ServerConfig(
        host=host,
        port=port,
        api_keys=tuple(ApiKey.from_secret(key) for key in api_key or ()),
        insecure=insecure,
        model_names=tuple(served_model_name or (source.name,)),
        limits=_limits(max_body_bytes, max_requests_per_key, session_lease_s),
        parrot_routes=not no_parrot_routes,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        shutdown_grace_s=shutdown_grace_s,
        web=_web(allowed_origins, allowed_hosts, ssl_certfile, ssl_keyfile),
    )
    service = ServiceConfig(
        max_sessions_per_tenant=max_sessions_per_key,
        max_pending_calls_per_session=max_pending_calls_per_key,
        max_pending_calls_per_tenant=max_pending_calls_per_key,
        max_bytes_per_tenant=parse_bytes(max_session_bytes_per_key, "max-session-bytes-per-key"),
        idle_s=session_idle_s,
    )
    order = ServeOrder(
        config,
        service,
        server,
        _read_functions(functions),
        json_ready,
        _check_directory(generation_config),
        _read_template(chat_template),
    )
    check_machine(config)
    run_server(order)


def _limits(max_body_bytes: str, max_requests_per_key: int, session_lease_s: float) -> Limits:
    return Limits(
        max_body_bytes=parse_bytes(max_body_bytes, "max-body-bytes"),
        max_requests_per_key=max_requests_per_key,
        session_lease_s=session_lease_s,
    )


def _decoding(tpot_objective_ms: float | None, max_burst_ms: float, speculation: Speculation) -> DecodingConfig:
    return DecodingConfig(
        tpot_objective_s=None if tpot_objective_ms is None else tpot_objective_ms / 1e3,
        max_burst_s=max_burst_ms / 1e3,
        speculation=speculation,
    )


def _web(
    origins: list[str] | None, hosts: list[str] | None, ssl_certfile: str | None, ssl_keyfile: str | None
) -> WebConfig:
    names = tuple(host.lower() for host in hosts or ())
    return WebConfig(tuple(origins or ()), names, ssl_certfile, ssl_keyfile)


def _read_functions(path: Path | None) -> dict[str, NativeFunction]:
    if path is None:
        return {}
    with showing_own_errors(path):
        return load_functions(path)


def _read_template(given: str | None) -> str | None:
    """Return the text of a chat template. Raises `InvalidRequest` for a file that cannot be read."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"chat-template is {given!r}, which cannot be read: {error}.", param="chat-template"
        ) from error


def _check_directory(generation_config: str) -> str:
    if generation_config not in (AUTO, NONE) and not Path(generation_config).is_dir():
        raise InvalidRequest(
            f"generation-config is {generation_config!r}; it must be {AUTO}, {NONE}, or a directory with a "
            "generation_config.json.",
            param="generation-config",
        )
    return generation_config


def _check_refused(*, enable_lora: bool, tensor_parallel_size: int) -> None:
    if enable_lora:
        raise Unsupported(
            "--enable-lora: Kea does not serve LoRA adapters.",
            hint="Merge the adapter into its model and serve that.",
            param="enable-lora",
        )
    if tensor_parallel_size != 1:
        raise Unsupported(
            f"--tensor-parallel-size is {tensor_parallel_size}: Kea runs a model on one device.",
            hint="Leave it at 1.",
            param="tensor-parallel-size",
        )
