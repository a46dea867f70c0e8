"""POST /v1/chat/completions: the assistant's next turn, whole or as a stream.

Knows its bodies; no engine, no templates.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from kea.errors import InvalidRequest
from kea.server.endpoint import Call
from kea.server.generation import Written
from kea.server.openai.logprobs import chat_logprobs, prompt_logprobs
from kea.server.openai.messages import template_messages, template_options
from kea.server.openai.request import Wanted, count_tokens, total_usage, usage_so_far
from kea.server.openai.tools import plan_tools
from kea.server.openai.turn import Conversation, Turn, prepare_turn
from kea.server.parsers import CallArguments, CallBegin, Content, Delta, Parser, Reasoning
from kea.server.sse import DONE, begin_stream, data_frame
from kea.server.wire.chat import ChatBody
from kea.server.wire.chat_reply import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatReply,
    DeltaReply,
    FunctionCallReply,
    MessageReply,
    ToolCallReply,
)
from kea.server.wire.chat_reply import FinishReason as WireFinishReason
from kea.server.wire.completions import tells_usage
from kea.types import Chunk, Finish, FinishReason, TokenLogprob


async def create_chat_completion(call: Call) -> ASGIApp:
    """Answer a conversation, whole or as a stream."""
    body: ChatBody = call.body
    model = call.state.model
    model.check_name(body.model)
    tools = [tool.function for tool in body.tools or ()]
    plan = plan_tools(model, tools, body.tool_choice, is_parallel=body.parallel_tool_calls is not False)
    options = {"add_generation_prompt": body.add_generation_prompt is not False, **template_options(body, model)}
    conversation = Conversation(template_messages(body.messages), options, plan, _field_names(body))
    turn = await prepare_turn(call, body, _wanted(body), conversation)
    if body.stream:
        return await begin_stream(_ChatStream(call, body, turn).frames())
    return await _answer(call, body, turn)


def _field_names(body: ChatBody) -> tuple[str, str]:
    is_old = body.max_completion_tokens is None and body.max_tokens is not None
    return "messages", "max_tokens" if is_old else "max_completion_tokens"


def _wanted(body: ChatBody) -> Wanted:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is set; it needs stream to be true.", param="stream_options")
    if body.top_logprobs and not body.logprobs:  # 0 asks for nothing: some clients always send it
        raise InvalidRequest("top_logprobs is set; it needs logprobs to be true.", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest("prompt_logprobs is set; it needs stream to be false.", param="prompt_logprobs")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return Wanted(
        num_choices=body.n or 1,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )


def _keeps(body: ChatBody, delta: Delta) -> bool:
    return body.include_reasoning is not False or not isinstance(delta, Reasoning)


def _finish_reason(finish: Finish | None, *, has_calls: bool) -> WireFinishReason:
    if finish is not None and finish.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if has_calls else "stop"


async def _answer(call: Call, body: ChatBody, turn: Turn) -> ASGIApp:
    written = await call.runner.collect([turn.job])
    reply = ChatReply(
        id=f"chatcmpl-{call.request_id}",
        object="chat.completion",
        created=int(time.time()),
        model=body.model or call.state.model.name,
        choices=[_whole_choice(body, turn, idx, output) for idx, output in enumerate(written)],
        usage=total_usage([turn.job], [output.finish for output in written]),
    )
    if body.prompt_logprobs is not None:
        entries = prompt_logprobs(turn.model.tokenizer, written[0].prompt_logprobs)
        reply = reply.model_copy(update={"prompt_logprobs": entries})
    return reply.to_response()


def _whole_choice(body: ChatBody, turn: Turn, idx: int, output: Written) -> ChatChoice:
    parser = turn.create_parser()
    deltas = [delta for delta in (*parser.feed(output.text), *parser.finish()) if _keeps(body, delta)]
    message = _whole_message(turn, deltas)
    return ChatChoice(
        index=idx,
        message=message,
        logprobs=chat_logprobs(turn.model.tokenizer, output.logprobs) if body.logprobs else None,
        finish_reason=_finish_reason(output.finish, has_calls=message.tool_calls is not None),
        stop_reason=output.finish.stop if output.finish is not None else None,
    )


def _whole_message(turn: Turn, deltas: Sequence[Delta]) -> MessageReply:
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    calls = _whole_calls(turn, deltas)
    message = MessageReply(role="assistant", content=None if calls and not content else content, refusal=None)
    added = {"reasoning_content": reasoning or None, "tool_calls": calls or None}
    return message.model_copy(update={name: value for name, value in added.items() if value is not None})


def _whole_calls(turn: Turn, deltas: Sequence[Delta]) -> list[ToolCallReply]:
    calls = []
    for begin in (delta for delta in deltas if isinstance(delta, CallBegin)):
        pieces = (delta for delta in deltas if isinstance(delta, CallArguments) and delta.call_idx == begin.call_idx)
        function = FunctionCallReply(name=begin.name, arguments="".join(piece.text for piece in pieces))
        calls.append(ToolCallReply(id=turn.create_call_id(), type="function", function=function))
    return calls


@dataclass(slots=True)
class _Output:
    """One choice while it is streamed. `logprobs` wait for the next frame of their choice."""

    parser: Parser
    is_begun: bool = False
    has_calls: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    finish: Finish | None = None


class _ChatStream:
    """Writes the frames of one stream."""

    def __init__(self, call: Call, body: ChatBody, turn: Turn) -> None:
        self._runner = call.runner
        self._body = body
        self._turn = turn
        self._outputs = [_Output(turn.create_parser()) for _ in turn.job.choices]
        self._base = ChatChunk(
            id=f"chatcmpl-{call.request_id}",
            object="chat.completion.chunk",
            created=int(time.time()),
            model=body.model or call.state.model.name,
            choices=[],
        )

    async def frames(self) -> AsyncGenerator[bytes]:
        """Yield a frame per piece of every choice, then the usage if it is wanted."""
        at_end, in_each = tells_usage(self._body.stream_options)
        async with aclosing(self._runner.stream([self._turn.job])) as chunks:
            async for item in chunks:
                output = self._outputs[item.choice_idx]
                added: dict[str, Any] = {}
                output.num_tokens = count_tokens(output.num_tokens, item.chunk)
                if in_each:
                    added = {"usage": usage_so_far(self._turn.job, output.num_tokens)}
                for choice in self._choices(item.choice_idx, item.chunk):
                    yield data_frame(self._base.model_copy(update={"choices": [choice], **added}).to_json())
        if at_end:
            usage = total_usage([self._turn.job], [output.finish for output in self._outputs])
            yield data_frame(self._base.model_copy(update={"usage": usage}).to_json())
        yield DONE

    def _choices(self, idx: int, chunk: Chunk) -> Iterator[ChatChunkChoice]:
        output = self._outputs[idx]
        if not output.is_begun:
            output.is_begun = True
            yield self._choice(idx, DeltaReply(role="assistant", content=""))
        output.logprobs.extend(chunk.logprobs)
        deltas = output.parser.feed(chunk.text)
        if chunk.finish is not None:
            deltas = [*deltas, *output.parser.finish()]
        for delta in deltas:
            if _keeps(self._body, delta):
                yield self._choice(idx, self._delta(output, delta))
        if chunk.finish is not None:
            output.finish = chunk.finish
            yield self._last_choice(idx, output, chunk.finish)

    def _delta(self, output: _Output, delta: Delta) -> DeltaReply:
        match delta:
            case Content(text):
                return DeltaReply(content=text)
            case Reasoning(text):
                return DeltaReply(reasoning_content=text)
            case CallBegin(idx, name):
                output.has_calls = True
                function = FunctionCallReply(name=name, arguments="")
                call = ToolCallReply(index=idx, id=self._turn.create_call_id(), type="function", function=function)
            case CallArguments(idx, text):
                call = ToolCallReply(index=idx, function=FunctionCallReply(arguments=text))
        return DeltaReply(tool_calls=[call])

    def _choice(self, idx: int, delta: DeltaReply) -> ChatChunkChoice:
        return ChatChunkChoice(index=idx, delta=delta, logprobs=self._take_logprobs(idx), finish_reason=None)

    def _last_choice(self, idx: int, output: _Output, finish: Finish) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=idx,
            delta=DeltaReply(),
            logprobs=self._take_logprobs(idx),
            finish_reason=_finish_reason(finish, has_calls=output.has_calls),
            stop_reason=finish.stop,
        )

    def _take_logprobs(self, idx: int) -> ChatLogprobs | None:
        entries, self._outputs[idx].logprobs = self._outputs[idx].logprobs, []
        return chat_logprobs(self._turn.model.tokenizer, entries) if entries else None
