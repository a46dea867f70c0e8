"""POST /v1/completions: continue prompts. Knows its bodies and the runner; no parsers, no templates."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from starlette.types import ASGIApp

from kea.errors import InvalidRequest
from kea.server.endpoint import Call
from kea.server.generation import PromptJob
from kea.server.openai.logprobs import LegacyWriter, prompt_logprobs
from kea.server.openai.request import Prompt, Wanted, check_fields, count_tokens, create_job, total_usage, usage_so_far
from kea.server.sse import DONE, begin_stream, data_frame
from kea.server.wire.completions import CompletionBody, CompletionChoice, CompletionReply, LegacyLogprobs, tells_usage
from kea.types import Chunk, Finish, FinishReason, TokenLogprob

FIELD_NAMES = ("prompt", "max_tokens")


async def create_completion(call: Call) -> ASGIApp:
    """Answer a completion, whole or as a stream."""
    body: CompletionBody = call.body
    call.state.model.check_name(body.model)
    wanted = _wanted(body)
    check_fields(call, body, wanted)
    prompts = await _encode_prompts(call, body, wanted.num_choices)
    jobs = [create_job(call, body, wanted, prompt, FIELD_NAMES) for prompt in prompts]
    writer = _Writer(call, body, jobs)
    if body.stream:
        return await begin_stream(writer.stream())
    return await writer.answer()


def _wanted(body: CompletionBody) -> Wanted:
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens is 0; it must be at least 1 (0 is for echo alone).", param="max_tokens")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is set; it needs stream to be true.", param="stream_options")
    wants_echoed_logprobs = body.echo and body.logprobs is not None and body.prompt_logprobs is None
    return Wanted(
        num_choices=body.n or 1,
        max_tokens=max(1, max_tokens),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if wants_echoed_logprobs else body.prompt_logprobs,
        constraint=body.to_constraint(),
        skip_special_tokens=body.skip_special_tokens is not False,
    )


async def _encode_prompts(call: Call, body: CompletionBody, num_choices: int) -> list[Prompt]:
    """Return the ids of every prompt; ids that the caller sent are checked, texts are tokenised."""
    prompts = _as_list(body)
    max_prompts = call.state.config.limits.max_prompts
    if not prompts:
        raise InvalidRequest("prompt is an empty list; at least one prompt is needed.", param="prompt")
    if len(prompts) * num_choices > max_prompts:
        raise InvalidRequest(
            f"prompt times n is {len(prompts) * num_choices}; at most {max_prompts} are accepted here.", param="prompt"
        )
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            call.state.model.check_chars(len(prompt), "prompt")
            token_ids = await call.state.model.encode(prompt, special=body.add_special_tokens is not False)
            encoded.append(Prompt(token_ids, prompt))
        else:
            call.state.model.check_ids(prompt, "prompt")
            encoded.append(Prompt(tuple(prompt)))
    return encoded


def _as_list(body: CompletionBody) -> Sequence[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return prompt  # type: ignore[return-value]


@dataclass(slots=True)
class _Output:
    """One choice while it is written."""

    job: PromptJob
    legacy: LegacyWriter
    is_begun: bool = False
    num_tokens: int = 0
    finish: Finish | None = None


class _Writer:
    """Writes the answer of one request from the chunks of its choices."""

    def __init__(self, call: Call, body: CompletionBody, jobs: Sequence[PromptJob]) -> None:
        self._runner = call.runner
        self._tokenizer = call.state.model.tokenizer
        self._body = body
        self._jobs = jobs
        self._id = f"cmpl-{call.request_id}"
        self._created = int(time.time())
        self._model = body.model or call.state.model.name
        num_top = body.logprobs or 0
        self._outputs = [_Output(job, LegacyWriter(self._tokenizer, num_top)) for job in jobs for _ in job.choices]

    async def answer(self) -> ASGIApp:
        """Wait for all outputs and return the whole answer."""
        written = await self._runner.collect(self._jobs)
        choices = [self._choice(idx, output.to_chunk()) for idx, output in enumerate(written)]
        reply = self._reply(choices).model_copy(update={"usage": total_usage(self._jobs, self._finishes())})
        return reply.to_response()

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the frames of a stream."""
        at_end, in_each = tells_usage(self._body.stream_options)
        async with aclosing(self._runner.stream(self._jobs)) as chunks:
            async for item in chunks:
                reply = self._reply([self._choice(item.choice_idx, item.chunk)])
                if in_each:
                    output = self._outputs[item.choice_idx]
                    output.num_tokens = count_tokens(output.num_tokens, item.chunk)
                    reply = reply.model_copy(update={"usage": usage_so_far(output.job, output.num_tokens)})
                yield data_frame(reply.to_json())
        if at_end:
            usage = total_usage(self._jobs, self._finishes())
            yield data_frame(self._reply([]).model_copy(update={"usage": usage}).to_json())
        yield DONE

    def _finishes(self) -> list[Finish | None]:
        return [output.finish for output in self._outputs]

    def _reply(self, choices: list[CompletionChoice]) -> CompletionReply:
        return CompletionReply(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )

    def _choice(self, idx: int, chunk: Chunk) -> CompletionChoice:
        output = self._outputs[idx]
        output.finish = chunk.finish or output.finish
        is_first, output.is_begun = not output.is_begun, True
        choice = CompletionChoice(
            index=idx,
            text=self._text(output, chunk, is_first=is_first),
            logprobs=self._logprobs(output, chunk, is_first=is_first),
            finish_reason=None if chunk.finish is None else _finish_reason(chunk.finish),
            stop_reason=None if chunk.finish is None else chunk.finish.stop,
        )
        if is_first and self._body.prompt_logprobs is not None:
            entries = prompt_logprobs(self._tokenizer, chunk.prompt_logprobs)
            return choice.model_copy(update={"prompt_logprobs": entries})
        return choice

    def _text(self, output: _Output, chunk: Chunk, *, is_first: bool) -> str:
        written = "" if self._writes_nothing else chunk.text
        if self._body.echo and is_first:
            prompt = output.job.text
            return (self._tokenizer.decode(output.job.token_ids) if prompt is None else prompt) + written
        return written

    def _logprobs(self, output: _Output, chunk: Chunk, *, is_first: bool) -> LegacyLogprobs | None:
        if self._body.logprobs is None:
            return None
        entries: list[TokenLogprob | None] = [] if self._writes_nothing else list(chunk.logprobs)
        token_ids = [entry.token_id for entry in entries if entry is not None]
        if self._body.echo and is_first:
            entries = [*(chunk.prompt_logprobs or [None] * len(output.job.token_ids)), *entries]
            token_ids = [*output.job.token_ids, *token_ids]
        return output.legacy.write(entries, token_ids)

    @property
    def _writes_nothing(self) -> bool:
        """Whether only the prompt is wanted (echo with max_tokens 0); the engine still has to draw one token."""
        return self._body.max_tokens == 0


def _finish_reason(finish: Finish) -> Literal["stop", "length"]:
    return "length" if finish.reason is FinishReason.LENGTH else "stop"
