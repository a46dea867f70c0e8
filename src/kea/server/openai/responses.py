"""The endpoints of /v1/responses: create (whole, as a stream, in the background), retrieve, cancel, delete."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp

from kea.errors import Conflict, InvalidRequest, KeaError
from kea.server.endpoint import Call
from kea.server.errors import as_kea_error, error_body
from kea.server.lifeline import Lifeline
from kea.server.openai.messages import check_options, effort_options
from kea.server.openai.request import Wanted
from kea.server.openai.response_input import input_messages
from kea.server.openai.response_run import ResponseRun
from kea.server.openai.tools import ToolChoice, plan_tools
from kea.server.openai.turn import Conversation, prepare_turn
from kea.server.sse import EventStream, begin_stream, event_frame
from kea.server.wire.chat import NamedFunction, NamedToolChoice
from kea.server.wire.responses import LOGPROBS, FlatToolChoice, ResponseBody
from kea.server.wire.responses_reply import DeletedReply, ResponseEvent, ResponseReply

logger = logging.getLogger(__name__)

FIELD_NAMES = ("input", "max_output_tokens")


async def create_response(call: Call) -> ASGIApp:
    """Answer with a response: whole, as a stream of events, or (in the background) as one that is queued."""
    body: ResponseBody = call.body
    _check(body)
    run = await _prepare(call, body)
    if body.store is not False:
        call.state.responses.put(call.tenant, run)
    if body.background:
        return await _begin_in_background(call, body, run)
    if body.stream:
        return await begin_stream(_frames(_foreground(call, run)), response_error_frame)
    async with aclosing(_foreground(call, run)) as events:
        async for _ in events:
            pass
    if run.error is not None:
        raise run.error
    return run.reply.to_response()


async def get_response(call: Call) -> ASGIApp:
    """Answer with a stored response, or with its events from a number on."""
    run = call.state.responses.get(call.tenant, call.path_params["response_id"])
    query = QueryParams(call.query)
    if query.get("stream", "false").lower() != "true":
        return run.reply.to_response()
    after = query.get("starting_after", "-1")
    if not after.removeprefix("-").isdigit() or len(after) > 9:
        raise InvalidRequest(f"starting_after is {after[:40]!r}; it must be an event's number.", param="starting_after")
    if not run.keeps_log:
        raise InvalidRequest("Only responses created with background and stream can be streamed again.", param="stream")
    return EventStream(_frames(run.follow(max(-1, int(after)))), b"", response_error_frame)


async def cancel_response(call: Call) -> ASGIApp:
    """End a response that runs in the background; one that has ended is answered as it is."""
    run = call.state.responses.get(call.tenant, call.path_params["response_id"])
    if not run.reply.background:
        raise InvalidRequest("Only responses created with background can be cancelled.", param="response_id")
    await _stop(run)
    return run.reply.to_response()


async def delete_response(call: Call) -> ASGIApp:
    """Forget a response; one that runs in the background ends."""
    run = call.state.responses.delete(call.tenant, call.path_params["response_id"])
    await _stop(run)
    return DeletedReply(id=run.reply.id, object="response", deleted=True).to_response()


def response_error_frame(error: KeaError) -> bytes:
    """Return the event of an error that the response itself could not tell."""
    told = error_body(error)["error"]
    payload = {"type": "error", "sequence_number": 0, "code": told["code"], "message": told["message"]}
    return event_frame("error", json.dumps({**payload, "param": told["param"]}).encode())


async def _frames(events: AsyncGenerator[ResponseEvent]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield event_frame(event.type, event.to_json())


async def _foreground(call: Call, run: ResponseRun) -> AsyncGenerator[ResponseEvent]:
    """Run a response while its client waits for it."""
    try:
        async with aclosing(run.events(call.runner)) as events:
            async for event in events:
                yield event
    finally:
        run.cancel_now()
        call.state.responses.end(run)


async def _begin_in_background(call: Call, body: ResponseBody, run: ResponseRun) -> ASGIApp:
    """Let a response run by itself; it holds one of its key's slots, and ends with the server."""
    slot = call.state.slots.hold(call.tenant)
    try:
        slot.__enter__()
    except KeaError:
        call.state.responses.delete(call.tenant, run.reply.id)
        raise
    run.task = asyncio.create_task(_run_in_background(call, run))
    run.task.add_done_callback(lambda _: slot.__exit__(None, None, None))
    if body.stream:
        return EventStream(_frames(run.follow(-1)), b"", response_error_frame)
    return run.reply.to_response()


async def _run_in_background(call: Call, run: ResponseRun) -> None:
    try:
        async with Lifeline(call.state.lifecycle), aclosing(run.events(call.runner)) as events:
            async for event in events:
                run.keep(event)
    except KeaError as error:
        logger.warning("response %s ended with the server: %s", run.reply.id, error)
    except Exception as error:
        logger.exception("response %s failed", run.reply.id)
        run.fail_now(as_kea_error(error))
    finally:
        run.cancel_now()
        call.state.responses.end(run)


async def _stop(run: ResponseRun) -> None:
    if run.task is not None and not run.task.done():
        run.task.cancel()
        await asyncio.wait([run.task])


def _check(body: ResponseBody) -> None:
    if body.background and body.store is False:
        raise InvalidRequest("background is true; a response in the background must be stored.", param="store")


async def _prepare(call: Call, body: ResponseBody) -> ResponseRun:
    model = call.state.model
    model.check_name(body.model)
    plan = plan_tools(model, body.tools or (), _choice(body), is_parallel=body.parallel_tool_calls is not False)
    messages = [*_earlier(call, body), *input_messages(body.input)]
    instructions = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    options = {"add_generation_prompt": True, **check_options(body.chat_template_kwargs)}
    if body.reasoning is not None and body.reasoning.effort is not None:
        options |= effort_options(body.reasoning.effort, model.reads)
    conversation = Conversation([*instructions, *messages], options, plan, FIELD_NAMES)
    turn = await prepare_turn(call, body, _wanted(body), conversation)
    keeps_log = bool(body.background and body.stream)
    return ResponseRun(_first_reply(call, body), turn, messages, streams=bool(body.stream), keeps_log=keeps_log)


def _wanted(body: ResponseBody) -> Wanted:
    wants_logprobs = body.top_logprobs is not None or LOGPROBS in (body.include or ())
    return Wanted(max_tokens=body.max_output_tokens, logprobs=(body.top_logprobs or 0) if wants_logprobs else None)


def _choice(body: ResponseBody) -> ToolChoice:
    choice = body.tool_choice
    if isinstance(choice, FlatToolChoice):
        return NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
    return choice


def _earlier(call: Call, body: ResponseBody) -> list[dict[str, Any]]:
    """Return the conversation of the response that this one follows. Raises `NotFound`, or `Conflict` while it runs."""
    if body.previous_response_id is None:
        return []
    earlier = call.state.responses.get(call.tenant, body.previous_response_id, param="previous_response_id")
    if earlier.reply.status not in ("completed", "incomplete"):
        raise Conflict(
            f"The previous response is {earlier.reply.status}; only one that is completed can be followed.",
            param="previous_response_id",
        )
    return earlier.conversation


def _first_reply(call: Call, body: ResponseBody) -> ResponseReply:
    choice = body.tool_choice or "auto"
    sampling = body.to_sampling(call.state.config.default_sampling)
    return ResponseReply(
        id=f"resp_{uuid.uuid4().hex}",
        object="response",
        created_at=time.time(),
        completed_at=None,
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        error=None,
        incomplete_details=None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=body.model or call.state.model.name,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning={"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        store=body.store is not False,
        temperature=sampling.temperature,
        text={"format": _shown(body.text.format) if body.text and body.text.format else {"type": "text"}},
        tool_choice=choice if isinstance(choice, str) else _shown(choice),
        tools=[_shown(tool) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=sampling.top_p,
        truncation="disabled",
        usage=None,
        user=body.user,
    )


def _shown(part: Any) -> dict[str, Any]:
    shown: dict[str, Any] = part.model_dump(by_alias=True, exclude_none=True)
    return shown
