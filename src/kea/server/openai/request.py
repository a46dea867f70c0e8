"""From request fields to a job for the engine: options per choice, checks against limits and capabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kea.engine.base import ContextSpec
from kea.errors import InvalidRequest
from kea.server.endpoint import Call
from kea.server.generation import PromptJob
from kea.server.wire.sampling import SEED_MODULUS, SamplingFields
from kea.server.wire.usage import CachedTokens, UsageReply, UsageSoFar
from kea.types import Chunk, Constraint, Finish, GenerateOptions, Stopping


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request wants of each of its prompts. `max_tokens` None: all that fit."""

    num_choices: int = 1
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    skip_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's ids, and its text where the caller gave that."""

    token_ids: tuple[int, ...]
    text: str | None = None


def check_fields(call: Call, fields: SamplingFields, wanted: Wanted) -> None:
    """Check what does not depend on the prompt: limits of this server, capabilities of its engine, ids."""
    limits, info = call.state.config.limits, call.state.model.engine.info
    model = call.state.model
    if wanted.num_choices > limits.max_choices:
        raise InvalidRequest(f"n is {wanted.num_choices}; at most {limits.max_choices} are accepted here.", param="n")
    if len(fields.stop_strings()) > limits.max_stop_strings:
        raise InvalidRequest(
            f"stop has {len(fields.stop_strings())} strings; at most {limits.max_stop_strings} are accepted here.",
            param="stop",
        )
    model.check_ids(fields.stop_token_ids or (), "stop_token_ids")
    model.check_ids([int(token_id) for token_id in fields.logit_bias or ()], "logit_bias")
    if wanted.constraint is not None:
        model.check_capability(has_it=info.capabilities.constraints, param="response_format")
    if wanted.prompt_logprobs is not None:
        model.check_capability(has_it=info.capabilities.prompt_logprobs, param="prompt_logprobs")


def create_job(call: Call, fields: SamplingFields, wanted: Wanted, prompt: Prompt, names: tuple[str, str]) -> PromptJob:
    """Build the job of one prompt; `names` are the request's names of the prompt and of the output's limit."""
    max_tokens = call.state.model.output_room(len(prompt.token_ids), wanted.max_tokens, names=names)
    stopping = Stopping(
        max_tokens=max_tokens,
        min_tokens=_min_tokens(fields, max_tokens),
        stop=fields.stop_strings(),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
    )
    options = GenerateOptions(
        stopping,
        fields.to_sampling(call.state.config.default_sampling),
        wanted.constraint,
        wanted.logprobs,
        skip_special_tokens=wanted.skip_special_tokens,
        speculation=fields.speculative_config.to_speculation() if fields.speculative_config else None,
    )
    spec = ContextSpec(
        tenant=call.tenant,
        priority=fields.priority or 0,
        order=call.state.next_order(),
        prompt_logprobs=wanted.prompt_logprobs,
    )
    choices = tuple(_choices(options, wanted.num_choices))
    field = None if wanted.constraint is None else fields.constraint_field() or "tools"
    return PromptJob(prompt.token_ids, choices, spec, prompt.text, fields.includes_stop(), field)


def total_usage(jobs: Sequence[PromptJob], finishes: Sequence[Finish | None]) -> UsageReply:
    """Add up the tokens of a request. `finishes` are those of all choices, in order."""
    prompt_tokens = sum(len(job.token_ids) for job in jobs)
    completion_tokens = sum(finish.usage.output_tokens for finish in finishes if finish is not None)
    cached_tokens, first = 0, 0
    for job in jobs:
        finish = finishes[first]
        cached_tokens += finish.usage.cached_tokens if finish is not None else 0
        first += len(job.choices)
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=cached_tokens),
    )


def usage_so_far(job: PromptJob, num_tokens: int) -> UsageSoFar:
    """Return the tokens of one choice while it is written."""
    prompt_tokens = len(job.token_ids)
    return UsageSoFar(
        prompt_tokens=prompt_tokens, completion_tokens=num_tokens, total_tokens=prompt_tokens + num_tokens
    )


def count_tokens(num_tokens: int, chunk: Chunk) -> int:
    """Return the tokens of a choice up to this chunk, `num_tokens` of which came before it."""
    return num_tokens + len(chunk.token_ids) if chunk.finish is None else chunk.finish.usage.output_tokens


def _min_tokens(fields: SamplingFields, max_tokens: int) -> int:
    min_tokens = fields.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {min_tokens}; the output has at most {max_tokens} tokens here.", param="min_tokens"
        )
    return min_tokens


def _choices(options: GenerateOptions, num_choices: int) -> Iterable[GenerateOptions]:
    """Yield the options of each choice; with a seed, each has its own, counted up from it."""
    seed = options.sampling.seed
    for idx in range(num_choices):
        if seed is None:
            yield options
        else:
            yield replace(options, sampling=replace(options.sampling, seed=(seed + idx) % SEED_MODULUS))
