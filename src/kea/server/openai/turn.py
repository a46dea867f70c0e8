"""One turn of an assistant: a conversation and its tools made into a job, and its outputs read back by parsers.

Shared by /v1/chat/completions and /v1/responses. Knows neither's bodies.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kea.errors import Unsupported
from kea.server.endpoint import Call
from kea.server.generation import PromptJob
from kea.server.openai.request import Prompt, Wanted, check_fields, create_job
from kea.server.openai.tools import ToolPlan
from kea.server.parsers import Parser
from kea.server.served import ServedModel, count_chars
from kea.server.wire.sampling import SamplingFields

END_TOKENS = 16
"""How many tokens of a prompt are looked at to see whether it ends inside the reasoning."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as templates read them, the template's options, and the tools. `names`: the request's own names of the
    messages and of the output's limit, for errors."""

    messages: Sequence[dict[str, Any]]
    options: Mapping[str, Any]
    plan: ToolPlan
    names: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that is ready to run."""

    job: PromptJob
    plan: ToolPlan
    model: ServedModel
    prompt_end: str
    is_constrained: bool

    def create_parser(self) -> Parser:
        return self.plan.create_parser(self.model, self.prompt_end, is_constrained=self.is_constrained)

    def create_call_id(self) -> str:
        """Make the id of a tool call in the form that the model's template accepts when it comes back."""
        length = self.model.output_format.call_id_len
        return uuid.uuid4().hex[:length] if length < 24 else f"call_{uuid.uuid4().hex[:length]}"


async def prepare_turn(call: Call, fields: SamplingFields, wanted: Wanted, conversation: Conversation) -> Turn:
    """Check a request, render its conversation and build its job."""
    model, plan = call.state.model, conversation.plan
    wanted = _with_constraint(fields, wanted, plan)
    is_constrained = wanted.constraint is not None
    shows_special = not is_constrained and model.output_format.shows_special_tokens(with_tools=bool(plan.offered))
    wanted = replace(wanted, skip_special_tokens=fields.skip_special_tokens is not False and not shows_special)
    check_fields(call, fields, wanted)
    model.check_chars(count_chars([*conversation.messages, plan.offered]), conversation.names[0])
    token_ids = await model.encode_chat(conversation.messages, tools=plan.offered, **conversation.options)
    if is_constrained and model.output_format.constrained_start:
        token_ids += tuple(model.tokenizer.encode_continuation(model.output_format.constrained_start))
    job = create_job(call, fields, wanted, Prompt(token_ids), conversation.names)
    prompt_end = model.tokenizer.decode(token_ids[-END_TOKENS:], skip_special=False)
    return Turn(job, plan, model, prompt_end, is_constrained)


def _with_constraint(fields: SamplingFields, wanted: Wanted, plan: ToolPlan) -> Wanted:
    own = fields.to_constraint()
    if own is not None and plan.offered:
        raise Unsupported(
            "response_format is set beside tools; an output that must match it could call none of them.",
            param="response_format",
            hint="Leave out one of them, or set tool_choice to none.",
        )
    return replace(wanted, constraint=plan.constraint or own or wanted.constraint)
