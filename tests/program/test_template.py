from __future__ import annotations

import pytest

from kea.errors import TemplateError
from kea.program.template import (
    ConstantFill,
    Message,
    PlaceholderFill,
    PlaceholderGen,
    parse_messages,
    parse_template,
    placeholders,
)


def test_a_template_becomes_segments_up_to_its_last_output() -> None:
    prompt = parse_template(
        "Tell {{who}} of {{who}}: {{story}} and {{end}} tail {{late}}", {"who", "late"}, {"story", "end"}
    )
    assert prompt.segments == (
        ConstantFill("Tell "),
        PlaceholderFill("who"),
        ConstantFill(" of "),
        PlaceholderFill("who"),
        ConstantFill(": "),
        PlaceholderGen("story"),
        ConstantFill(" and "),
        PlaceholderGen("end"),
    )
    assert prompt.inputs == ("who",)
    assert prompt.outputs == ("story", "end")


@pytest.mark.parametrize("text", ["{{1a}}", "{{a b}}", "{ {a}}", "{{ a }}", "{{a}", "{a}", "{{}}", "{{a-b}}"])
def test_what_is_no_placeholder_is_text(text: str) -> None:
    assert placeholders(text) == ()
    assert parse_template(text + "{{out}}", set(), {"out"}).segments[0] == ConstantFill(text)


def test_placeholder_names_follow_the_original() -> None:
    assert placeholders("{{a}}{{_b1}}{{{c}}}{{A_9}}") == ("a", "_b1", "c", "A_9")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{x}}{{out}}", r"\{\{x\}\}, which is no parameter; parameters are a, out"),
        ("{{a}}", r"does not name the output \{\{out\}\}"),
        ("{{out}} {{out}}", r"stands at two places"),
    ],
)
def test_a_malformed_template_is_refused_by_name(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_template(template, {"a"}, {"out"})


def test_a_template_without_outputs_is_refused() -> None:
    with pytest.raises(TemplateError, match="has no output"):
        parse_template("text", set(), set())


def test_messages_become_turns_up_to_the_last_output() -> None:
    prompt = parse_messages(
        [
            Message("system", "Be {{style}}."),
            Message("user", "Hi"),
            Message("assistant", "Well, {{answer}} done"),
            Message("user", "dropped {{style}}"),
        ],
        {"style"},
        {"answer"},
    )
    assert prompt.turns is not None
    assert [turn.role for turn in prompt.turns] == ["system", "user", "assistant"]
    assert prompt.turns[-1].segments == (ConstantFill("Well, "), PlaceholderGen("answer"))
    assert prompt.outputs == ("answer",)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Message("user", "{{out}}")], r"output \{\{out\}\} stands in a user message"),
        ([Message("robot", "hi"), Message("assistant", "{{out}}")], "role 'robot'; allowed are system"),
        ([Message("user", "hi")], r"does not name the output \{\{out\}\}"),
        ([], r"does not name the output \{\{out\}\}"),
    ],
)
def test_malformed_messages_are_refused(messages: list[Message], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_messages(messages, set(), {"out"})
