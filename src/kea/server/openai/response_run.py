"""One response from its start to its end: its state, and the events that tell it. Knows no HTTP and no store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from kea.errors import Cancelled, KeaError
from kea.server.generation import Runner
from kea.server.openai.logprobs import chat_logprobs
from kea.server.openai.response_input import output_messages
from kea.server.openai.response_items import EventFactory, ItemWriter
from kea.server.openai.turn import Turn
from kea.server.wire.responses_reply import (
    ErrorReply,
    IncompleteReply,
    InputDetails,
    OutputDetails,
    ResponseEvent,
    ResponseReply,
    ResponseUsage,
    Status,
)
from kea.types import Chunk, Finish, FinishReason

ENDS = ("completed", "incomplete", "failed", "cancelled")


class ResponseRun:
    """A response that runs or has run. `events` is iterated once, by whoever runs it; followers read the log.

    `messages`: the conversation before its output. `keeps_log`: the events are kept for readers that come later.
    """

    def __init__(
        self, reply: ResponseReply, turn: Turn, messages: Sequence[dict[str, Any]], *, streams: bool, keeps_log: bool
    ) -> None:
        self.reply = reply
        self.error: KeaError | None = None
        self.keeps_log = keeps_log
        self.expires_s = float("inf")
        self.task: asyncio.Task[None] | None = None
        self._turn = turn
        self._messages = list(messages)
        self._streams = streams
        self._log: list[ResponseEvent] = []
        self._news = asyncio.Event()
        self._factory = EventFactory()
        self._writer = ItemWriter(self._factory, turn.create_call_id)

    @property
    def has_ended(self) -> bool:
        return self.reply.status in ENDS

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages with the output behind them."""
        return [*self._messages, *output_messages(self.reply.output)]

    async def events(self, runner: Runner) -> AsyncGenerator[ResponseEvent]:
        """Run, and yield the events. An error ends the response as failed, and is kept in `error`."""
        yield self._tell("created")
        self._set(status="in_progress")
        yield self._tell("in_progress")
        finish: Finish | None = None
        try:
            async with aclosing(self._chunks(runner)) as chunks:
                parser = self._turn.create_parser()
                async for chunk in chunks:
                    finish = chunk.finish or finish
                    deltas = [*parser.feed(chunk.text), *(parser.finish() if chunk.finish else ())]
                    logprobs = chat_logprobs(self._turn.model.tokenizer, chunk.logprobs).content
                    for idx, delta in enumerate(deltas):
                        for event in self._writer.add(delta, logprobs if not idx else []):
                            yield event
        except KeaError as error:
            self.error = error
            for event in self._end("failed", finish):
                yield event
            return
        is_cut = finish is not None and finish.reason is FinishReason.LENGTH
        for event in self._end("incomplete" if is_cut else "completed", finish):
            yield event

    def cancel_now(self) -> None:
        """Record the end of a response whose run was cancelled."""
        if not self.has_ended:
            self.error = Cancelled("The response was cancelled.")
            for event in self._end("cancelled", None):
                self.keep(event)

    def fail_now(self, error: KeaError) -> None:
        """Record the end of a response whose run failed in a way that it could not tell itself."""
        if not self.has_ended:
            self.error = error
            for event in self._end("failed", None):
                self.keep(event)

    def keep(self, event: ResponseEvent) -> None:
        """Add an event to the log and wake its readers."""
        if self.keeps_log:
            self._log.append(event)
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int) -> AsyncGenerator[ResponseEvent]:
        """Yield the kept events behind number `after`, and those to come, until the response has ended."""
        idx = after + 1
        while True:
            for event in self._log[idx:]:
                yield event
            idx = max(idx, len(self._log))
            if self.has_ended:
                return
            await self._news.wait()

    async def _chunks(self, runner: Runner) -> AsyncGenerator[Chunk]:
        """Yield the output as it comes where it is streamed, else as one chunk: then it may still run again."""
        if not self._streams:
            yield (await runner.collect([self._turn.job]))[0].to_chunk()
            return
        async with aclosing(runner.stream([self._turn.job])) as chunks:
            async for item in chunks:
                yield item.chunk

    def _end(self, status: Status, finish: Finish | None) -> Iterator[ResponseEvent]:
        yield from self._writer.close("completed" if status == "completed" else "incomplete")
        error = self.error
        self._set(
            status=status,
            completed_at=time.time(),
            output=self._writer.items,
            usage=None if finish is None else self._usage(finish),
            error=None if error is None or status != "failed" else ErrorReply(code=error.code, message=str(error)),
            incomplete_details=IncompleteReply(reason="max_output_tokens") if status == "incomplete" else None,
        )
        yield self._tell(status)

    def _usage(self, finish: Finish) -> ResponseUsage:
        num_input, num_output = len(self._turn.job.token_ids), finish.usage.output_tokens
        reasoning = self._writer.reasoning_text
        num_reasoning = len(self._turn.model.tokenizer.encode_continuation(reasoning)) if reasoning else 0
        return ResponseUsage(
            input_tokens=num_input,
            input_tokens_details=InputDetails(cached_tokens=finish.usage.cached_tokens, cache_write_tokens=0),
            output_tokens=num_output,
            output_tokens_details=OutputDetails(reasoning_tokens=min(num_reasoning, num_output)),
            total_tokens=num_input + num_output,
        )

    def _set(self, **fields: Any) -> None:
        self.reply = self.reply.model_copy(update=fields)

    def _tell(self, kind: str) -> ResponseEvent:
        return self._factory.create(kind, response=self.reply)
