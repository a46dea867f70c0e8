"""The transport to a server, over the routes of docs/wire.md. Owns one HTTP client; knows no engine."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from kea.client.reading import SharedReads
from kea.errors import Cancelled, DeadlineExceeded, InvalidRequest, KeaError, NotFound, Unreachable, error_from_dict
from kea.program.call import Program
from kea.program.events import EventDecoder, StreamEvent
from kea.program.status import SessionStatus, status_from_json
from kea.program.wire import program_to_json
from kea.types import Criteria

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
CONNECT_TIMEOUT_S = 10.0
POLL_S = 30.0
"""So long one request waits for a variable: proxies end those on which nothing comes for a minute."""
READ_LINGER_S = 0.001
SILENCE_S = 60, 15, 4
"""A peer that sends nothing for the first number of seconds is asked, every so many seconds, so many times."""


class HttpTransport:
    """A connection to the server at `url` (scheme, host, port; the routes' /v1 is added)."""

    linger_s = 0.001

    def __init__(self, url: str, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"url is {url!r}; it must begin with http:// or https://.", param="url")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._stack = AsyncExitStack()
        self._client: httpx2.AsyncClient | None = None
        self._heartbeats: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        import httpx2

        client = httpx2.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            **_connections(),
        )
        self._client = await self._stack.enter_async_context(client)

    async def open_session(self, name: str) -> HttpChannel:
        assert self._client is not None, "the transport is not open"
        opened = await request(self._client, "POST", "/v1/sessions", json={"name": name})
        channel = HttpChannel(self._client, int(opened["session_id"]), str(opened["session_secret"]))
        lease_s = opened.get("lease_s")
        if lease_s is not None:
            heartbeat = asyncio.get_running_loop().create_task(channel.keep(float(lease_s) / BEATS_PER_LEASE))
            self._heartbeats.add(heartbeat)
            heartbeat.add_done_callback(self._heartbeats.discard)
        return channel

    async def name_model(self) -> str:
        """Return the name under which the server offers its model."""
        assert self._client is not None, "the transport is not open"
        models = await request(self._client, "GET", "/v1/models")
        return str(models["data"][0]["id"])

    async def close(self) -> None:
        for heartbeat in self._heartbeats:
            heartbeat.cancel()
        await self._stack.aclose()


def _connections() -> dict[str, Any]:
    """Return how the client connects: as often as needed, and asking the peer's system whether it is still there.

    A reader may wait for hours, rightly; a machine that vanished would never answer it. Where the environment names a
    proxy, connections are as that needs them.
    """
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    if getproxies().keys() & {"http", "https", "all"}:
        return {"limits": limits}
    idle_s, interval_s, num_probes = SILENCE_S
    wanted = {"TCP_KEEPIDLE": idle_s, "TCP_KEEPALIVE": idle_s, "TCP_KEEPINTVL": interval_s, "TCP_KEEPCNT": num_probes}
    known = [
        (socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in wanted.items() if hasattr(socket, name)
    ]
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]
    return {"transport": httpx2.AsyncHTTPTransport(limits=limits, socket_options=options)}


class HttpChannel:
    """A session of the server."""

    def __init__(self, client: httpx2.AsyncClient, session_id: int, secret: str) -> None:
        self._client = client
        self._path = f"/v1/sessions/{session_id}"
        self._headers = {"X-Kea-Session-Secret": secret}
        self._reads = SharedReads(self._read_each, READ_LINGER_S)
        self._num_alone = 0
        self._is_closed = False
        self._heartbeat: asyncio.Task[None] | None = None

    async def keep(self, interval_s: float) -> None:
        """Tell the server again and again that this client is there, until the session is closed; it ends its calls
        else, as those of a client that was killed.
        """
        self._heartbeat = asyncio.current_task()
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._request("POST", "/renew")
            except (NotFound, Cancelled):
                return  # it is closed: whoever uses it next is told
            except KeaError as error:
                logger.debug("a session was not renewed, and will be tried again: %s", error)

    async def submit(self, program: Program) -> None:
        await self._request("POST", "/calls", json=program_to_json(program))

    async def set(self, variable_id: str, value: str) -> None:
        await self._request("PUT", f"/variables/{variable_id}", json={"value": value})

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str:
        """Read alone if nobody else reads, or within a deadline; others share requests: 1,000 need no 1,000 sockets."""
        if self._num_alone and deadline_s is None:
            return await self._reads.get(variable_id, criteria)
        self._num_alone += 1
        try:
            while True:
                try:
                    return await self._wait(variable_id, criteria, POLL_S if deadline_s is None else deadline_s)
                except DeadlineExceeded:
                    if deadline_s is not None:
                        raise
        finally:
            self._num_alone -= 1

    async def _wait(self, variable_id: str, criteria: Criteria | None, deadline_s: float) -> str:
        params = _query(criteria, deadline_s)
        answer = await self._request("GET", f"/variables/{variable_id}", params=params)
        return str(answer["value"])

    async def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]:
        path = f"/variables/{variable_id}/stream"
        async with aclosing(self._events("GET", path, params=_query(criteria, None))) as events:
            async for event in events:
                if event.name == "piece":
                    yield str(event.data["text"])

    async def _read_each(
        self, variable_ids: Sequence[str], criteria: Criteria | None
    ) -> AsyncGenerator[tuple[str, str | KeaError]]:
        body = {"variables": list(variable_ids), "criteria": None if criteria is None else criteria.value}
        async with aclosing(self._events("POST", "/read", json=body)) as events:
            async for event in events:
                if event.name == "value":
                    yield str(event.data["id"]), str(event.data["value"])
                elif event.name == "failure":
                    yield str(event.data["id"]), error_from_dict(event.data["error"])

    async def _events(self, method: str, path: str, **options: Any) -> AsyncGenerator[StreamEvent]:
        """Yield the events of an answer up to its `done`. Raises the error that ended it, or `Unreachable`."""
        decoder, is_whole = EventDecoder(), False
        sent = self._client.stream(method, self._path + path, headers=self._headers, **options)
        with _reaching(self._client):
            async with sent as response:
                if not response.is_success:
                    await response.aread()
                    raise self._why(_error_of(response))
                async for line in response.aiter_lines():
                    for event in decoder.feed(line):
                        if event.name == "error":
                            raise error_from_dict(event.data["error"])
                        is_whole = event.name == "done"
                        if not is_whole:
                            yield event
        if not is_whole:
            raise Unreachable("the stream ended before the variable did.", hint="Read the variable again.")

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]:
        body = {} if call_ids is None else {"call_ids": list(call_ids)}
        answer = await self._request("POST", "/cancel", json=body)
        return list(answer["cancelled"])

    async def status(self) -> SessionStatus:
        return status_from_json(await self._request("GET", ""))

    async def close(self) -> None:
        self._is_closed = True
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        try:
            await request(self._client, "DELETE", self._path, headers=self._headers)
        except NotFound:
            return  # it was idle for too long, or the server was started again: there is nothing to close

    async def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return await request(self._client, method, self._path + path, headers=self._headers, **options)
        except NotFound as error:
            raise self._why(error) from None

    def _why(self, error: KeaError) -> KeaError:
        """Return the error of a reader that came behind the end of its own session as what it is."""
        if self._is_closed and isinstance(error, NotFound):
            return Cancelled("the session was closed.", hint="Read variables before it closes.")
        return error


async def request(client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Send a request and return the object that answers it. Raises the server's error, or `Unreachable`."""
    with _reaching(client):
        response = await client.request(method, path, **options)
    if not response.is_success:
        raise _error_of(response)
    answer = response.json()
    if not isinstance(answer, dict):
        raise KeaError(f"the server at {client.base_url} answered {method} {path} with no JSON object.")
    return answer


@contextmanager
def _reaching(client: httpx2.AsyncClient) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.TransportError as error:
        raise Unreachable(
            f"the server at {client.base_url} does not answer: {str(error) or type(error).__name__}.",
            hint="Is it running, and is the address right?",
        ) from error


def _query(criteria: Criteria | None, deadline_s: float | None) -> dict[str, str]:
    given = {"criteria": None if criteria is None else criteria.value, "deadline_s": deadline_s}
    return {name: str(value) for name, value in given.items() if value is not None}


def _error_of(response: httpx2.Response) -> KeaError:
    """Return the error that an answer carries; one of another form (a proxy's) becomes a plain `KeaError`."""
    try:
        return error_from_dict(response.json()["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        text = response.text[:200].strip()
        return KeaError(f"the server answered with status {response.status_code}: {text or 'no content'}")
