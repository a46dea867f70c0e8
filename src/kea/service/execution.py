"""One run of one call on one engine: its prompt filled into a context, its outputs generated. Knows no scheduling.

A run begins from the inputs. Outputs that an earlier run (on an engine that died) finished are appended as the tokens
that they were; one that it had begun is generated again, and its variable compares the two texts. For that every drawn
output has a seed, chosen once per call where the author gave none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from kea.engine.base import Context, ContextSpec, Engine
from kea.errors import Cancelled, ContextLengthExceeded, InvalidRequest
from kea.program.call import CallSpec, OutputParameter
from kea.service.metering import Meter, OutputTimer
from kea.service.prompt import PromptText, Tokenizer, render_prompt
from kea.service.record import CallRecord, WrittenOutput
from kea.service.session import Clock, Session
from kea.types import Finish, FinishReason, GenerateOptions

INLINE_CHARS = 20_000
"""Longer texts are tokenised on another thread, so that the event loop goes on."""
READ_CHARS = 500_000
"""Up to here a text that cannot fit is tokenised nevertheless, so that its error tells how many tokens it has."""


@dataclass(slots=True)
class CallRunner:
    """Runs calls with one tokenizer. `draw_seed` returns a random integer below 2^31. `meter`: who is told of times."""

    tokenizer: Tokenizer
    draw_seed: Callable[[], int]
    clock: Clock
    meter: Meter | None = None

    async def run(self, call: CallSpec, record: CallRecord, session: Session, engine: Engine) -> None:
        """Write the outputs that are missing. Raises what the engine raises, or what is wrong with the prompt."""
        prompt = render_prompt(call, session.value_of, self.tokenizer)
        context = engine.create_context(ContextSpec(record.tenant, call.priority, _as_float(record.order)))
        run = _Run(self, call, record, session, context, max_model_len=engine.info.max_model_len)
        try:
            for idx, text in enumerate(prompt.texts):
                await run.append_text(text, special=prompt.special)
                if idx < len(record.written):
                    run.replay(record.written[idx])
                else:
                    await run.write_output(idx)
        finally:
            context.free()

    async def encode(self, prompt: PromptText, *, is_first: bool, special: bool) -> list[int]:
        """Return the ids of a text that begins a context, or that follows other tokens."""
        if len(prompt.text) > INLINE_CHARS:
            return await asyncio.to_thread(self._encode, prompt, is_first, special)
        return self._encode(prompt, is_first, special)

    def _encode(self, prompt: PromptText, is_first: bool, special: bool) -> list[int]:
        if is_first:
            return self.tokenizer.encode(prompt.text, special=special, literal=prompt.literal)
        return self.tokenizer.encode_continuation(prompt.text, literal=prompt.literal)


class _Run:
    """The context of one run, and its length in tokens."""

    def __init__(
        self,
        runner: CallRunner,
        call: CallSpec,
        record: CallRecord,
        session: Session,
        context: Context,
        *,
        max_model_len: int,
    ) -> None:
        self._runner = runner
        self._call = call
        self._outputs = {output.name: output for output in call.outputs}
        self._record = record
        self._session = session
        self._context = context
        self._max_model_len = max_model_len
        self._context_len = 0
        self._residual = ""

    async def append_text(self, text: PromptText, *, special: bool) -> None:
        """Append the text before an output, behind what the stop of the output in front of it left."""
        text = text.behind(self._residual)
        self._check_chars(len(text.text))
        is_first = not self._context_len
        if is_first or text.text:
            self._append(await self._runner.encode(text, is_first=is_first, special=special))
        self._residual = ""

    def _check_chars(self, num_chars: int) -> None:
        """Raise `ContextLengthExceeded` for a text that could not fit whatever it says, before it is tokenised."""
        most = self._max_model_len * self._runner.tokenizer.max_token_chars
        if num_chars > max(most, READ_CHARS):
            raise ContextLengthExceeded(
                f"A text of the prompt has {num_chars} characters; the model's context of {self._max_model_len} tokens "
                f"holds no more than {most}."
            )

    def replay(self, written: WrittenOutput) -> None:
        """Append an output that an earlier run finished."""
        self._append(written.token_ids)
        self._residual = written.residual

    async def write_output(self, idx: int) -> None:
        """Generate an output into its variable, and make it ready."""
        output = self._outputs[self._call.prompt.outputs[idx]]
        options = self._options(output, idx)
        variable = self._session.variables[output.variable_id]
        variable.begin_again()
        start_len = self._context_len
        token_ids: list[int] = []
        finish: Finish | None = None
        clock, timer = self._runner.clock, self._timer(is_first=not idx)
        async for chunk in self._context.generate(options):
            if timer is not None:
                timer.see(chunk, clock())
            token_ids.extend(chunk.token_ids)
            if chunk.text:
                self._session.write_output(variable.id, chunk.text)
            finish = chunk.finish
        if finish is None or finish.reason is FinishReason.CANCELLED:
            raise Cancelled(f"the engine cancelled the output {output.name!r}.")
        self._context_len, self._residual = finish.context_len, finish.residual
        kept = tuple(token_ids[: finish.context_len - start_len])
        self._record.written.append(WrittenOutput(kept, finish.residual))
        self._record.usages.append(finish.usage)
        self._session.finish_output(output.variable_id)

    def _timer(self, *, is_first: bool) -> OutputTimer | None:
        """Return what times an output: the first against the moment in which the inputs were ready."""
        if self._runner.meter is None:
            return None
        ready_s = self._record.ready_s
        return OutputTimer(self._runner.meter, ready_s if is_first and ready_s is not None else self._runner.clock())

    def _append(self, token_ids: list[int] | tuple[int, ...]) -> None:
        if token_ids:
            self._context.append(token_ids)
        self._context_len += len(token_ids)

    def _options(self, output: OutputParameter, idx: int) -> GenerateOptions:
        """Return the engine's options: a seed for what is drawn, `max_tokens` within the room that is left."""
        options = output.output.options
        stopping, sampling = options.stopping, options.sampling
        max_tokens = self._max_tokens(output)
        if max_tokens < stopping.max_tokens:
            stopping = replace(stopping, max_tokens=max_tokens, min_tokens=min(stopping.min_tokens, max_tokens))
        if not sampling.is_greedy and sampling.seed is None:
            seed = self._record.seeds.setdefault(idx, self._runner.draw_seed())
            sampling = replace(sampling, seed=seed)
        if stopping is options.stopping and sampling is options.sampling:
            return options
        return replace(options, stopping=stopping, sampling=sampling)

    def _max_tokens(self, output: OutputParameter) -> int:
        """Return how many tokens an output may have. Raises `ContextLengthExceeded` where it may not be cut."""
        if not self._context_len:
            raise InvalidRequest(
                f"there is no text before the output {output.name!r}, and the model has no token to begin with.",
                param="template",
            )
        wanted, room = output.output.options.stopping.max_tokens, self._max_model_len - self._context_len
        if wanted <= room or (output.output.clamp and room > 0):
            return min(wanted, room)
        raise ContextLengthExceeded(
            f"{self._context_len} tokens stand before the output {output.name!r}, which may have {wanted} more; the "
            f"model's context holds {self._max_model_len}.",
            hint=f"Shorten the inputs, or set max_tokens to at most {room} or clamp to true." if room > 0 else None,
            param="max_tokens",
        )


def _as_float(order: tuple[int, int]) -> float:
    """Return an application's order and the call's within it as one number that sorts alike."""
    application, number = order
    return application + min(number, 2**20 - 1) / 2**20
