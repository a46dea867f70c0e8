from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kea.errors import TemplateError, Unsupported
from kea.service.prompt import RenderedPrompt, render_prompt
from tests.fakes.engine import FakeEngine, scripted
from tests.fakes.tokenizer import FakeTokenizer
from tests.service.programs import call, program, service

VALUES = {"x": "X", "y": "{{z}}", "marker": "OUTPUT0X0END OUTPUT1X"}


def rendered(
    template: str | list[tuple[str, str]], *outputs: str, tokenizer: FakeTokenizer | None = None
) -> RenderedPrompt:
    return render_prompt(
        call("c", template, **{name: {} for name in outputs}), VALUES.__getitem__, tokenizer or FakeTokenizer()
    )


def test_a_plain_template_is_joined_and_values_are_never_parsed() -> None:
    prompt = rendered("a {{x}}{{y}} b{{p}}c{{q}} dropped {{x}}", "p", "q")
    assert prompt == RenderedPrompt(("a X{{z}} b", "c"), special=True)


def test_an_output_that_begins_a_turn_follows_the_generation_prompt() -> None:
    prompt = rendered([("system", "Be {{x}}"), ("user", "Hi"), ("assistant", "{{p}}")], "p")
    assert prompt == RenderedPrompt(("<system>Be X<end><user>Hi<end><assistant>",), special=False)


def test_outputs_in_several_turns_and_in_the_middle_of_one() -> None:
    turns = [
        ("user", "one {{x}}"),
        ("assistant", "Well, {{p}} and {{q}}!"),
        ("user", "{{x}} two"),
        ("assistant", "{{r}}"),
        ("user", "dropped"),
    ]
    texts = rendered(turns, "p", "q", "r").texts
    assert texts == ("<user>one X<end><assistant>Well, ", " and ", "!<end><user>X two<end><assistant>")


def test_what_the_model_sees_is_what_the_template_writes() -> None:
    turns = [("user", "a"), ("assistant", "{{p}} tail"), ("user", "b"), ("assistant", "so: {{q}}")]
    texts = rendered(turns, "p", "q").texts
    whole = texts[0] + "ONE" + texts[1] + "TWO"
    messages = [{"role": role, "content": text.replace("{{p}}", "ONE").replace("{{q}}", "TWO")} for role, text in turns]
    assert FakeTokenizer().render_chat(messages, add_generation_prompt=False).removesuffix("<end>") == whole


def test_markers_never_meet_the_values() -> None:
    texts = rendered([("user", "{{marker}}"), ("assistant", "{{p}}{{marker}}{{q}}")], "p", "q").texts
    assert texts == ("<user>OUTPUT0X0END OUTPUT1X<end><assistant>", VALUES["marker"])


def test_many_outputs_are_told_apart() -> None:
    names = [f"o{idx}" for idx in range(12)]
    template = "".join(f"{idx}{{{{{name}}}}}" for idx, name in enumerate(names))
    texts = rendered([("user", "u"), ("assistant", template)], *names).texts
    assert texts == ("<user>u<end><assistant>0", *(str(idx) for idx in range(1, 12)))


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(Unsupported, match="no chat template"):
        rendered([("user", "u"), ("assistant", "{{p}}")], "p", tokenizer=FakeTokenizer(chat=False))


class Lossy(FakeTokenizer):
    """Like templates that shorten earlier turns of the assistant."""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        kept = [
            {**turn, "content": "..."} if turn["role"] == "assistant" and idx + 1 < len(messages) else turn
            for idx, turn in enumerate(messages)
        ]
        return super().render_chat(kept, tools, add_generation_prompt, **options)


def test_a_template_that_loses_an_output_is_refused() -> None:
    turns = [("user", "a"), ("assistant", "{{p}}"), ("user", "b"), ("assistant", "{{q}}")]
    with pytest.raises(TemplateError, match=r"does not keep the output \{\{p\}\} in its place"):
        rendered(turns, "p", "q", tokenizer=Lossy())


async def test_a_chat_call_runs_in_one_context() -> None:
    engine = FakeEngine(scripted("ONE", "TWO"))
    turns = [("user", "a {{x}}"), ("assistant", "so: {{p}} tail"), ("user", "b"), ("assistant", "{{q}}")]
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", turns, p={}, q={}), x="X"))
        assert await some.get(session, "q") == "TWO"
        assert await some.get(session, "p") == "ONE"
    first = "<user>a X<end><assistant>so: "
    assert engine.record.prompts == [first, first + "ONE tail<end><user>b<end><assistant>"]
    assert engine.record.token_ids[0][0] == ord("<")  # the chat template alone writes what begins the sequence
