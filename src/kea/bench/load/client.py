"""One OpenAI-compatible server as the load sees it: one request sent, its streamed answer timed.

Owns HTTP and the naming of what can go wrong. Does not know when requests are sent nor what is made of the results.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from kea.bench.load.stream import StreamTimer
from kea.errors import InvalidRequest, Unreachable

Api = Literal["completions", "chat"]
FailureKind = Literal["connection", "http", "server_error", "disconnect", "timeout", "protocol", "interrupted"]
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Target:
    """A server of the run. `base_url` has no /v1 at its end; the key is never printed nor written; a `model` of None is
    the one that the server has. One that does not know ignore_eos is not sent it, and may give shorter answers."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    knows_ignore_eos: bool = True

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InvalidRequest(
                f"base-url is {self.base_url!r}; it must begin with http:// or https://.", param="base-url"
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/").removesuffix("/v1"))


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What is the same in all requests. `extra` is merged into the body last and may override anything."""

    api: Api = "completions"
    ignore_eos: bool = True
    temperature: float = 0.0
    timeout_s: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return "/v1/completions" if self.api == "completions" else "/v1/chat/completions"

    def body(self, model: str, prompt: str, output_len: int) -> bytes:
        """Return the JSON body of one streamed request for exactly `output_len` tokens."""
        content: dict[str, Any] = (
            {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        )
        settings = {"max_tokens": output_len, "temperature": self.temperature}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return json.dumps({"model": model, **content, **settings, **eos, **stream, **self.extra}).encode()


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why a request gave no whole answer."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request as it went. Times are seconds: `scheduled_s` and `sent_s` from the start of the round, the others
    from sending. `ttft_s` and `e2e_s` are None where no token came; a failed request keeps what it had until then."""

    index: int
    scheduled_s: float
    sent_s: float
    wanted_output_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    is_usage_reported: bool = False
    ttft_s: float | None = None
    itl_s: tuple[float, ...] = ()
    e2e_s: float | None = None
    failure: RequestFailure | None = None

    @property
    def lag_s(self) -> float:
        """How late this client sent the request, by its own fault."""
        return max(0.0, self.sent_s - self.scheduled_s)


class _RequestFailed(Exception):
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = RequestFailure(kind, message[:_MAX_MESSAGE])


class LoadClient:
    """Sends requests to one server over as many connections as they need; `async with` closes them."""

    def __init__(self, target: Target, shape: RequestShape, clock: Callable[[], float]) -> None:
        self.target = target
        self.shape = shape if target.knows_ignore_eos else replace(shape, ignore_eos=False)
        self._clock = clock
        headers = {"content-type": "application/json"}
        if target.api_key:
            headers["authorization"] = f"Bearer {target.api_key}"
        # No limit on connections: an arrival never waits for another request. Idle ones are closed before a server's
        # usual 5 s, or the server would close them under a request. No proxies: the server is what is measured.
        self._http = httpx2.AsyncClient(
            base_url=target.base_url,
            headers=headers,
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def send(
        self, body: bytes, *, index: int, output_len: int, scheduled_s: float, start: float
    ) -> RequestResult:
        """Send one request now and read its answer to the end. Never raises for what the server does: the result says
        so. `start` is the clock's reading at the start of the round. Cancelling it closes the connection."""
        timer = StreamTimer()
        sent = self._clock()
        failure: RequestFailure | None = None
        try:
            async with asyncio.timeout(self.shape.timeout_s):
                await self._stream(body, timer)
        except _RequestFailed as error:
            failure = error.failure
        except TimeoutError:
            failure = RequestFailure("timeout", f"no whole answer within {self.shape.timeout_s:g} s")
        except asyncio.CancelledError:
            failure = RequestFailure("interrupted", "the run ended before the answer did")
        timer.close()
        return _result(timer, failure, index, output_len, (scheduled_s, sent - start, sent))

    async def _stream(self, body: bytes, timer: StreamTimer) -> None:
        try:
            async with self._http.stream("POST", self.shape.path, content=body) as response:
                if response.status_code != 200:
                    raise _RequestFailed("http", _http_message(response.status_code, await response.aread()))
                await self._read_events(response, timer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _RequestFailed("connection", f"cannot connect: {error}") from error
        except httpx2.SSEError as error:
            raise _RequestFailed("protocol", str(error)) from error
        except httpx2.TransportError as error:
            raise _RequestFailed("disconnect", f"{type(error).__name__}: {error}") from error

    async def _read_events(self, response: httpx2.Response, timer: StreamTimer) -> None:
        async for event in httpx2.EventSource(response):
            if event.data == "[DONE]":
                return
            now = self._clock()
            try:
                data = json.loads(event.data)
                if "error" in data:
                    raise _RequestFailed("server_error", _error_message(data["error"]))
                timer.observe(data, now)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _RequestFailed("protocol", f"{error!r} in the event {event.data[:100]!r}") from error
        if timer.finish_reason is None:
            raise _RequestFailed("disconnect", "the stream ended without a finish reason")

    async def try_models(self) -> tuple[str, ...] | None:
        """Return the names of the models served, None for a server that does not list them.

        Raises Unreachable where nothing answers.
        """
        data = await self._try_get_json("/v1/models")
        try:
            return None if data is None else tuple(str(model["id"]) for model in data["data"])
        except (KeyError, TypeError):
            return None

    async def try_version(self) -> str | None:
        """Return what /version says, None for a server without that route."""
        data = await self._try_get_json("/version")
        version = data.get("version") if isinstance(data, dict) else None
        return None if version is None else str(version)

    async def try_count_tokens(self, model: str, text: str) -> int | None:
        """Return the number of prompt tokens of a text by the server's /tokenize, None for a server without it."""
        try:
            response = await self._http.post("/tokenize", json={"model": model, "prompt": text}, timeout=60.0)
            data = response.json() if response.status_code == 200 else {}
        except (httpx2.TransportError, ValueError):
            return None
        if not isinstance(data, dict):
            return None
        count = data.get("count", len(data.get("tokens") or ()))
        return int(count) or None

    async def _try_get_json(self, path: str) -> Any | None:
        """Return the JSON of a route, None where it answers with something else or another status."""
        try:
            response = await self._http.get(path, timeout=30.0)
        except httpx2.TransportError as error:
            raise Unreachable(
                f"The server at {self.target.base_url} does not answer ({str(error) or type(error).__name__}).",
                hint="Is it running, and is this its address?",
            ) from error
        try:
            return response.json() if response.status_code == 200 else None
        except ValueError:
            return None


def _result(
    timer: StreamTimer, failure: RequestFailure | None, index: int, output_len: int, at: tuple[float, float, float]
) -> RequestResult:
    scheduled_s, sent_s, sent = at
    times = timer.token_times
    usage = timer.usage
    if failure is None and not times:
        failure = RequestFailure("protocol", "the answer held no token")
    return RequestResult(
        index=index,
        scheduled_s=scheduled_s,
        sent_s=sent_s,
        wanted_output_tokens=output_len,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        output_tokens=timer.num_output_tokens,
        is_usage_reported=usage is not None,
        ttft_s=times[0] - sent if times else None,
        itl_s=tuple(later - earlier for earlier, later in pairwise(times)),
        e2e_s=times[-1] - sent if times else None,
        failure=failure,
    )


def _http_message(status: int, content: bytes) -> str:
    text = content.decode("utf-8", errors="replace").strip()
    try:
        data = json.loads(text)
        text = _error_message(data["error"])
    except (ValueError, KeyError, TypeError):
        text = text[:_MAX_MESSAGE]
    return f"{status}: {text}"


def _error_message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
