"""The contexts and generations of `FakeEngine`: a queue of operations per context, a task per running generation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kea.engine.base import ContextSpec
from kea.errors import ContextLengthExceeded, InvalidRequest, KeaError
from kea.types import Chunk, Finish, FinishReason, GenerateOptions, TokenLogprob, Usage

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine, Fault


class FakeContext:
    """A list of tokens and a queue of operations, run in order; a running generation blocks the queue."""

    def __init__(self, engine: FakeEngine, spec: ContextSpec, *, is_blocked: bool = False) -> None:
        self.engine = engine
        self.spec = spec
        self.token_ids: list[int] = []
        self.computed_len = 0
        self.running: FakeGeneration | None = None
        self.error: KeaError | None = engine.death
        self.is_freed = False
        self.is_blocked = is_blocked
        self._queue: deque[Callable[[], None] | FakeGeneration] = deque()

    def append(self, token_ids: Sequence[int]) -> None:
        ids = list(token_ids)
        self._enqueue(lambda: self.token_ids.extend(ids))

    def generate(self, options: GenerateOptions) -> FakeGeneration:
        generation = FakeGeneration(self, options)
        self._enqueue(generation)
        return generation

    def fork(self, at: int | None = None) -> FakeContext:
        child = FakeContext(self.engine, self.spec, is_blocked=True)
        self.engine.contexts.add(child)
        self._enqueue(lambda: child.inherit(self, at))
        return child

    def truncate(self, length: int) -> None:
        self._enqueue(lambda: self._truncate(length))

    def drop(self, start: int, stop: int) -> None:
        self._enqueue(lambda: None)

    def free(self) -> None:
        self.is_freed = True
        self.engine.contexts.discard(self)
        for operation in [self.running, *self._queue]:
            if isinstance(operation, FakeGeneration):
                operation.cancel()

    def fail(self, error: KeaError) -> None:
        """Fail the running generation and whatever follows."""
        self.error = error
        if self.running is not None:
            self.running.fail(error)
        self.pump()

    def inherit(self, parent: FakeContext, at: int | None) -> None:
        self.error = self.error or parent.error
        self.token_ids = parent.token_ids[: len(parent.token_ids) if at is None else at]
        self.computed_len = min(parent.computed_len, len(self.token_ids))
        self.is_blocked = False
        self.pump()

    def pump(self) -> None:
        """Run queued operations up to the next generation, and start that."""
        while self._queue and self.running is None and not self.is_blocked:
            operation = self._queue.popleft()
            if not isinstance(operation, FakeGeneration):
                operation()
            elif self.error is not None:
                operation.fail(self.error)
            else:
                self.running = operation
                operation.start()

    def _truncate(self, length: int) -> None:
        if length > len(self.token_ids):
            message = f"truncate to {length} tokens: the context holds {len(self.token_ids)}."
            self.error = InvalidRequest(message, param="length")
        del self.token_ids[length:]
        self.computed_len = min(self.computed_len, length)

    def _enqueue(self, operation: Callable[[], None] | FakeGeneration) -> None:
        self._queue.append(operation)
        self.pump()


class FakeGeneration:
    """One reply, chunk by chunk, into a queue that the iterator reads."""

    def __init__(self, context: FakeContext, options: GenerateOptions) -> None:
        self.context = context
        self.options = options
        self._chunks: asyncio.Queue[Chunk | KeaError] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            item = await self._chunks.get()
            if isinstance(item, KeaError):
                raise item
            yield item
            if item.finish is not None:
                return

    def cancel(self) -> None:
        self._is_cancelled = True

    def fail(self, error: KeaError) -> None:
        if self._task is not None:
            self._task.cancel()
        self._chunks.put_nowait(error)
        self._leave()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._emit_reply()
        except KeaError as error:
            self.context.error = error
            self._chunks.put_nowait(error)
            self._leave()

    async def _emit_reply(self) -> None:
        context, engine = self.context, self.context.engine
        prompt_ids = tuple(context.token_ids)
        self._check_length(len(prompt_ids))
        prompt = engine.tokenizer.decode(prompt_ids)
        self._keep_record(prompt, prompt_ids)
        fault = engine.take_fault(prompt)
        ids, reason = self._reply_ids(prompt)
        kept, text, stop = self._cut_at_stop(ids)
        emitted = await self._emit_steps(ids, text, prompt_ids, fault)
        if emitted < len(ids):
            return self._finish(prompt_ids, ids[:emitted], FinishReason.CANCELLED)
        if fault is not None:
            raise fault.error
        residual = text[len(engine.tokenizer.decode(ids[:kept])) :]
        reason = FinishReason.STOP if stop is not None else reason
        return self._finish(prompt_ids, ids[:kept], reason, residual=residual, stop=stop)

    async def _emit_steps(self, ids: list[int], text: str, prompt_ids: tuple[int, ...], fault: Fault | None) -> int:
        """Send `ids` step by step, of their text what is safely before any stop; return how many were sent."""
        engine, stops = self.context.engine, self.options.stopping.stop
        emitted, sent = 0, 0
        while emitted < len(ids):
            await engine.step()
            if self._is_cancelled:
                break
            step_ids = ids[emitted : emitted + engine.chunk_tokens]
            if fault is not None and emitted + len(step_ids) > fault.after_tokens:
                raise fault.error
            emitted += len(step_ids)
            safe = _without_stop_start(engine.tokenizer.decode(ids[:emitted])[: len(text)], stops)
            safe = text if emitted == len(ids) else safe
            self._send(step_ids, safe[sent:], prompt_ids if emitted == len(step_ids) else ())
            sent = max(sent, len(safe))
        return emitted

    def _check_length(self, prompt_len: int) -> None:
        room = self.context.engine.info.max_model_len - prompt_len
        if not prompt_len:
            raise InvalidRequest("generate on an empty context: append at least one token first.", param="prompt")
        if self.options.stopping.max_tokens > room:
            raise ContextLengthExceeded(
                f"{prompt_len} tokens of context and {self.options.stopping.max_tokens} to write exceed "
                f"{self.context.engine.info.max_model_len}.",
                param="max_tokens",
            )

    def _keep_record(self, prompt: str, prompt_ids: tuple[int, ...]) -> None:
        record = self.context.engine.record
        record.prompts.append(prompt)
        record.token_ids.append(prompt_ids)
        record.options.append(self.options)
        record.prompt_tokens += len(prompt_ids) - self.context.computed_len

    def _reply_ids(self, prompt: str) -> tuple[list[int], FinishReason]:
        engine, stopping = self.context.engine, self.options.stopping
        ids = engine.tokenizer.encode(engine.reply(prompt, self.options), special=False)
        wanted = stopping.max_tokens if stopping.ignore_eos else stopping.min_tokens
        source = ids or [ord(".")]
        while len(ids) < wanted:
            ids = [*ids, *source][:wanted]
        is_cut = len(ids) > stopping.max_tokens or (stopping.ignore_eos and len(ids) == stopping.max_tokens)
        return ids[: stopping.max_tokens], FinishReason.LENGTH if is_cut else FinishReason.STOP

    def _cut_at_stop(self, ids: list[int]) -> tuple[int, str, str | int | None]:
        """Cut `ids` behind the token that completes a stop; return tokens kept, the text emitted and the stop."""
        tokenizer, stopping = self.context.engine.tokenizer, self.options.stopping
        text = ""
        for idx, token_id in enumerate(ids):
            if token_id in stopping.stop_token_ids and idx >= stopping.min_tokens:
                del ids[idx:]
                return idx, text, token_id
            text += tokenizer.decode([token_id])
            at, stop = min(((text.find(stop), stop) for stop in stopping.stop if stop in text), default=(-1, ""))
            if at >= 0:
                del ids[idx + 1 :]
                return self._num_before(ids, at), text[:at], stop
        return len(ids), text, None

    def _num_before(self, ids: Sequence[int], text_len: int) -> int:
        """Count the leading tokens whose text lies wholly within the first `text_len` characters."""
        decode = self.context.engine.tokenizer.decode
        return max(num for num in range(len(ids) + 1) if len(decode(ids[:num])) <= text_len)

    def _send(self, ids: Sequence[int], text: str, prompt_ids: tuple[int, ...]) -> None:
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.options.logprobs is not None:
            logprobs = tuple(_logprob(token_id, self.options.logprobs) for token_id in ids)
        width = self.context.spec.prompt_logprobs
        of_prompt = None
        if width is not None and prompt_ids:
            of_prompt = (None, *(_logprob(token_id, width) for token_id in prompt_ids[1:]))
        self._chunks.put_nowait(Chunk(tuple(ids), text, logprobs, of_prompt))

    def _finish(
        self,
        prompt_ids: Sequence[int],
        kept: Sequence[int],
        reason: FinishReason,
        *,
        residual: str = "",
        stop: str | int | None = None,
    ) -> None:
        context, record = self.context, self.context.engine.record
        usage = Usage(len(prompt_ids), context.computed_len, len(kept), 0.0, 0.0, 0.0)
        context.token_ids.extend(kept)
        context.computed_len = len(context.token_ids)
        record.generation_tokens += len(kept)
        record.num_finished[reason.value] = record.num_finished.get(reason.value, 0) + 1
        finish = Finish(reason, usage, len(context.token_ids), residual, stop)
        self._chunks.put_nowait(Chunk(finish=finish))
        self._leave()

    def _leave(self) -> None:
        if self.context.running is self:
            self.context.running = None
        self.context.pump()


def _without_stop_start(text: str, stops: Iterable[str]) -> str:
    """Hold back a suffix that may be the beginning of a stop string."""
    held = 0
    for stop in stops:
        held = max(held, *(size for size in range(len(stop)) if text.endswith(stop[:size])))
    return text[: len(text) - held]


def _logprob(token_id: int, width: int) -> TokenLogprob:
    top = tuple((token_id + offset, -0.5 - offset) for offset in range(width))
    return TokenLogprob(token_id, -0.5, 1, top)
