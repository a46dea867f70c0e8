"""POST /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

from starlette.types import ASGIApp

from kea.errors import InvalidRequest
from kea.server.endpoint import Call
from kea.server.openai.logprobs import token_text
from kea.server.openai.messages import check_options, template_messages
from kea.server.openai.tools import plan_tools
from kea.server.served import count_chars
from kea.server.wire.models import DetokenizeBody, DetokenizeReply, TokenizeBody, TokenizeReply


async def tokenize(call: Call) -> ASGIApp:
    """Answer with the ids of a prompt, or of a conversation as the model's template writes it."""
    body: TokenizeBody = call.body
    model = call.state.model
    model.check_name(body.model)
    token_ids = await _encode(call, body)
    reply = TokenizeReply(count=len(token_ids), max_model_len=model.max_model_len, tokens=list(token_ids))
    if body.return_token_strs:
        texts = [token_text(model.tokenizer, token_id) for token_id in token_ids]
        reply = reply.model_copy(update={"token_strs": texts})
    return reply.to_response()


async def _encode(call: Call, body: TokenizeBody) -> tuple[int, ...]:
    model = call.state.model
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Exactly one of prompt and messages is needed.", param="prompt")
    if body.prompt is not None:
        model.check_chars(len(body.prompt), "prompt")
        return await model.encode(body.prompt, special=body.add_special_tokens is not False)
    plan = plan_tools(model, [tool.function for tool in body.tools or ()], None)
    options = check_options(body.chat_template_kwargs)
    messages = template_messages(body.messages or ())
    model.check_chars(count_chars([*messages, plan.offered]), "messages")
    return await model.encode_chat(
        messages,
        tools=plan.offered,
        add_generation_prompt=body.add_generation_prompt is not False,
        **options,
    )


async def detokenize(call: Call) -> ASGIApp:
    """Answer with the text of ids, special tokens included."""
    body: DetokenizeBody = call.body
    model = call.state.model
    model.check_name(body.model)
    model.check_ids(body.tokens, "tokens")
    return DetokenizeReply(prompt=await model.decode(body.tokens)).to_response()
