"""Server-sent events: framing, and a streaming answer whose failures reach its reader. Knows no endpoints."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from kea.errors import KeaError
from kea.program.events import KEEP_ALIVE
from kea.server.errors import as_kea_error, error_body

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE_S = 15.0
LIFELINE_KEY = "kea.lifeline"
ErrorFrame = Callable[[KeaError], bytes]
HEADERS = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def data_frame(payload: bytes) -> bytes:
    """Frame a payload without line breaks."""
    return b"data: " + payload + b"\n\n"


def event_frame(event: str, payload: bytes) -> bytes:
    """Frame a payload of a named event."""
    return b"event: " + event.encode() + b"\n" + data_frame(payload)


def openai_error_frame(error: KeaError) -> bytes:
    """Return the last words of a stream of OpenAI's form that failed."""
    return data_frame(json.dumps(error_body(error)).encode()) + DONE


class EventStream:
    """The answer that sends frames as they are made. Closes `frames` at its end, whatever ended it."""

    def __init__(self, frames: AsyncGenerator[bytes], first: bytes, error_frame: ErrorFrame) -> None:
        self._frames = frames
        self._first = first
        self._error_frame = error_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        try:
            last = await self._send_frames(send)
        except asyncio.CancelledError:
            reason = scope[LIFELINE_KEY].reason
            if isinstance(reason, KeaError):
                await send({"type": "http.response.body", "body": self._error_frame(reason), "more_body": False})
            raise
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_frames(self, send: Send) -> bytes:
        """Send all frames; return what is to be sent last: nothing, or the error that ended them."""
        try:
            async with aclosing(self._frames):
                if self._first:
                    await send({"type": "http.response.body", "body": self._first, "more_body": True})
                async for frame in self._frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        except KeaError as error:
            return self._error_frame(error)
        except Exception as error:
            logger.exception("a stream failed")
            return self._error_frame(as_kea_error(error))
        return b""


async def with_keep_alive(frames: AsyncGenerator[bytes], interval_s: float = KEEP_ALIVE_S) -> AsyncGenerator[bytes]:
    """Yield the frames, and a comment whenever none came for a while, so that proxies keep the connection."""
    async with aclosing(frames):
        pending = asyncio.ensure_future(anext(frames, None))
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=interval_s)
                if not done:
                    yield KEEP_ALIVE
                    continue
                frame = pending.result()
                if frame is None:
                    return
                yield frame
                pending = asyncio.ensure_future(anext(frames, None))
        finally:
            pending.cancel()
            await asyncio.wait({pending})


async def begin_stream(frames: AsyncGenerator[bytes], error_frame: ErrorFrame = openai_error_frame) -> EventStream:
    """Wait for the first frame, so that what fails before it is answered with its own status, then stream."""
    first = await anext(frames, b"")
    return EventStream(frames, first, error_frame)
