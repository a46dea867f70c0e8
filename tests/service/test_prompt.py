from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.errors import TemplateError, Unsupported
from kea.service.prompt import PromptText, RenderedPrompt, render_prompt
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


def plain(prompt: RenderedPrompt) -> tuple[str, ...]:
    return tuple(text.text for text in prompt.texts)


def test_a_plain_template_is_joined_and_values_are_never_parsed() -> None:
    prompt = rendered("a {{x}}{{y}} b{{p}}c{{q}} dropped {{x}}", "p", "q")
    assert prompt == RenderedPrompt((PromptText("a X{{z}} b", ((2, 3), (3, 8))), PromptText("c")), special=True)


def test_an_output_that_begins_a_turn_follows_the_generation_prompt() -> None:
    prompt = rendered([("system", "Be {{x}}"), ("user", "Hi"), ("assistant", "{{p}}")], "p")
    assert prompt == RenderedPrompt((PromptText("<system>Be X<end><user>Hi<end><assistant>"),), special=False)


def test_outputs_in_several_turns_and_in_the_middle_of_one() -> None:
    turns = [
        ("user", "one {{x}}"),
        ("assistant", "Well, {{p}} and {{q}}!"),
        ("user", "{{x}} two"),
        ("assistant", "{{r}}"),
        ("user", "dropped"),
    ]
    texts = plain(rendered(turns, "p", "q", "r"))
    assert texts == ("<user>one X<end><assistant>Well, ", " and ", "!<end><user>X two<end><assistant>")


def test_what_the_model_sees_is_what_the_template_writes() -> None:
    turns = [("user", "a"), ("assistant", "{{p}} tail"), ("user", "b"), ("assistant", "so: {{q}}")]
    texts = plain(rendered(turns, "p", "q"))
    whole = texts[0] + "ONE" + texts[1] + "TWO"
    messages = [{"role": role, "content": text.replace("{{p}}", "ONE").replace("{{q}}", "TWO")} for role, text in turns]
    assert FakeTokenizer().render_chat(messages, add_generation_prompt=False).removesuffix("<end>") == whole


def test_markers_never_meet_the_values() -> None:
    texts = plain(rendered([("user", "{{marker}}"), ("assistant", "{{p}}{{marker}}{{q}}")], "p", "q"))
    assert texts == ("<user>OUTPUT0X0END OUTPUT1X<end><assistant>", VALUES["marker"])


def test_many_outputs_are_told_apart() -> None:
    names = [f"o{idx}" for idx in range(12)]
    template = "".join(f"{idx}{{{{{name}}}}}" for idx, name in enumerate(names))
    texts = plain(rendered([("user", "u"), ("assistant", template)], *names))
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


async def test_a_value_never_becomes_a_control_token() -> None:
    tokenizer = FakeTokenizer(("d!",), special=("<end>",))
    control = tokenizer.encode("<end>", special=False)
    assert len(control) == 1
    engine = FakeEngine(scripted("word d!", "TWO", "THREE", "FOUR"), tokenizer=tokenizer)
    turns = [("user", "a{{x}}b"), ("assistant", "{{p}}"), ("user", "{{x}}"), ("assistant", "{{q}}")]
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("plain", "<end>{{x}}{{r}}{{x}}<end>{{s}}", r={"stop": "!"}, s={}), x="<end>"))
        assert await some.get(session, "s") == "TWO"
        some.submit(session, program(call("chat", turns, p={}, q={})))
        assert await some.get(session, "q") == "FOUR"
    plain_ids, chat_ids = engine.record.token_ids[1], engine.record.token_ids[3]
    assert tokenizer.decode(plain_ids) == "<end><end>word d<end><end>"
    assert plain_ids.count(control[0]) == 2
    assert tokenizer.decode(chat_ids) == "<user>a<end>b<end><assistant>THREE<end><user><end><end><assistant>"
    assert chat_ids.count(control[0]) == 3


@given(st.text("ab", max_size=9), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3), st.text("c"))
def test_spans_follow_the_text(text: str, spans: list[tuple[int, int]], lead: str) -> None:
    inside = [(start, stop) for start, stop in spans if start < stop <= len(text)]
    marked = PromptText(text, tuple(inside)).behind(lead)
    expected = {lead[:] for _ in range(bool(lead))} | {text[start:stop] for start, stop in inside}
    assert {marked.text[start:stop] for start, stop in marked.literal} == expected
    back = marked.part(len(lead), len(marked.text))
    assert back == PromptText(text, tuple(inside))
