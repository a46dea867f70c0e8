"""From the pieces of an output to the items of a response and the events that tell them. Knows no requests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

from kea.server.parsers import CallArguments, CallBegin, Content, Delta, Reasoning
from kea.server.wire.chat_reply import TokenLogprobReply
from kea.server.wire.responses_reply import ItemReply, ItemStatus, PartReply, ResponseEvent

CreateCallId = Callable[[], str]


class EventFactory:
    """Numbers the events of one response."""

    def __init__(self) -> None:
        self._num_made = 0

    def create(self, kind: str, **fields: Any) -> ResponseEvent:
        event = ResponseEvent(type=f"response.{kind}", sequence_number=self._num_made, **fields)
        self._num_made += 1
        return event


class ItemWriter:
    """Puts the items of one response together. One item is open at a time; the next kind of piece closes it."""

    def __init__(self, events: EventFactory, create_call_id: CreateCallId) -> None:
        self.items: list[ItemReply] = []
        self._events = events
        self._create_call_id = create_call_id
        self._open: ItemReply | None = None
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobReply] = []

    @property
    def reasoning_text(self) -> str:
        return "".join(part.text for item in self.items if item.type == "reasoning" for part in item.content)

    def add(self, delta: Delta, logprobs: list[TokenLogprobReply]) -> Iterator[ResponseEvent]:
        """Add a piece; yield its events. Log-probabilities are kept for text of the answer only."""
        match delta:
            case Reasoning(text):
                yield from self._enter("reasoning")
                yield self._say("reasoning_text.delta", text)
            case Content(text):
                yield from self._enter("message")
                self._logprobs += logprobs
                yield self._say("output_text.delta", text, logprobs=logprobs)
            case CallBegin(_, name):
                yield from self.close()
                yield self._begin("function_call", call_id=self._create_call_id(), name=name, arguments="")
            case CallArguments(_, text):
                yield self._say("function_call_arguments.delta", text)

    def close(self, status: ItemStatus = "completed") -> Iterator[ResponseEvent]:
        """Close the open item, if there is one."""
        item, text, self._open = self._open, "".join(self._text), None
        if item is None:
            return
        if item.type == "function_call":
            yield self._event("function_call_arguments.done", item, name=item.name, arguments=text)
            done = item.model_copy(update={"arguments": text, "status": status})
        else:
            part = self._part(item, text)
            kind = "reasoning_text.done" if item.type == "reasoning" else "output_text.done"
            more = {} if item.type == "reasoning" else {"logprobs": self._logprobs}
            yield self._event(kind, item, content_index=0, text=text, **more)
            yield self._event("content_part.done", item, content_index=0, part=part)
            done = item.model_copy(update={"content": [part], "status": status})
        self.items[-1] = done
        yield self._events.create("output_item.done", output_index=len(self.items) - 1, item=done)

    def _enter(self, kind: str) -> Iterator[ResponseEvent]:
        if self._open is not None and self._open.type == kind:
            return
        yield from self.close()
        more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        yield self._begin(kind, content=[], **more)
        if self._open is not None:
            yield self._event("content_part.added", self._open, content_index=0, part=self._part(self._open, ""))

    def _begin(self, kind: str, **fields: Any) -> ResponseEvent:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item = ItemReply(id=f"{prefix}_{uuid.uuid4().hex}", type=kind, status="in_progress", **fields)  # type: ignore[arg-type]
        self._open, self._text, self._logprobs = item, [], []
        self.items.append(item)
        return self._events.create("output_item.added", output_index=len(self.items) - 1, item=item)

    def _say(self, kind: str, text: str, **more: Any) -> ResponseEvent:
        assert self._open is not None, "a piece came before its item"
        self._text.append(text)
        if self._open.type != "function_call":
            more["content_index"] = 0
        return self._event(kind, self._open, delta=text, **more)

    def _event(self, kind: str, item: ItemReply, **fields: Any) -> ResponseEvent:
        return self._events.create(kind, item_id=item.id, output_index=len(self.items) - 1, **fields)

    def _part(self, item: ItemReply, text: str) -> PartReply:
        if item.type == "reasoning":
            return PartReply(type="reasoning_text", text=text)
        return PartReply(type="output_text", text=text, annotations=[], logprobs=list(self._logprobs) if text else [])
