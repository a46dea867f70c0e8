"""Parsers of reasoning and tool calls: what they read, and that it never depends on how the text was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.errors import InvalidRequest
from kea.server.parsers import CallArguments, CallBegin, Content, Delta, Forced, Parser, Reasoning
from kea.server.parsers.base import Chain, PlainParser
from kea.server.parsers.calls import LeadingCalls, NamedCall, forced_calls, hermes_calls, mistral_calls
from kea.server.parsers.choose import CALL_FORMATS, choose_format, create_forced_parser
from kea.server.parsers.harmony import HarmonyParser
from kea.server.parsers.reasoning import TagReasoning


@dataclass
class Read:
    """What an output was read as."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)

    def add(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            match delta:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(idx, name):
                    assert idx == len(self.calls)
                    self.calls.append((name, ""))
                case CallArguments(idx, text):
                    name, arguments = self.calls[idx]
                    self.calls[idx] = (name, arguments + text)


def read(parser: Parser, pieces: list[str]) -> Read:
    result = Read()
    for piece in pieces:
        result.add(parser.feed(piece))
    result.add(parser.finish())
    return result


def think() -> Parser:
    return TagReasoning("<think>", "</think>")


def think_inside() -> Parser:
    return TagReasoning("<think>", "</think>", begins_inside=True)


def think_hermes() -> Parser:
    return Chain(think(), hermes_calls())


PARSERS: dict[str, Callable[[], Parser]] = {
    "plain": PlainParser,
    "think": think,
    "think_inside": think_inside,
    "hermes": hermes_calls,
    "think_hermes": think_hermes,
    "mistral": mistral_calls,
    "llama3": LeadingCalls,
    "harmony": HarmonyParser,
    "harmony_final": lambda: HarmonyParser(begins_final=True),
    "forced": forced_calls,
    "named": lambda: NamedCall("f"),
}

CALL = '{"name": "f", "arguments": {"a": "x}\\"y", "b": [1, {"c": 2}]}}'
ARGS = '{"a": "x}\\"y", "b": [1, {"c": 2}]}'

THOUGHT = "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
TO_F = " to=functions.f<|channel|>commentary json"

CASES: list[tuple[str, str, Read]] = [
    ("plain", " hello\n", Read(" hello\n")),
    ("plain", "", Read()),
    ("think", "<think>\nhm, 2\n</think>\n\nfour", Read("four", "hm, 2")),
    ("think", "  \n<think>a</think>b", Read("b", "a")),
    ("think", "no tags", Read("no tags")),
    ("think", "<thin", Read("<thin")),
    ("think", "a <think>b</think>", Read("a <think>b</think>")),
    ("think", "<think>cut off", Read("", "cut off")),
    ("think", "<think></think>x </think> y", Read("x </think> y")),
    ("think", "<think>a </thin b </think>c", Read("c", "a </thin b")),
    ("think_inside", "hm</think>four", Read("four", "hm")),
    ("think_inside", "\n hm", Read("", "hm")),
    ("hermes", "just text ", Read("just text ")),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", Read(calls=[("f", ARGS)])),
    ("hermes", f"Look: \n<tool_call>{CALL}</tool_call>\n", Read("Look:", calls=[("f", ARGS)])),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", Read(calls=[("f", ARGS), ("f", ARGS)])),
    ("hermes", f"<tool_call>{CALL}\n<tool_call>{CALL}", Read(calls=[("f", ARGS), ("f", ARGS)])),
    ("hermes", f"<tool_call>{CALL}</tool_call> and now?", Read("and now?", calls=[("f", ARGS)])),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "g"}</tool_call>', Read(calls=[("g", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "g"}</tool_call>', Read(calls=[("g", "{}")])),
    ("hermes", '<tool_call>{"name": "g", "arguments": null}</tool_call>', Read(calls=[("g", "{}")])),
    ("hermes", '<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}</tool_call>', Read(calls=[("g", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "g", "id": 7, "arguments": {}}</tool_call>', Read(calls=[("g", "{}")])),
    ("hermes", "<tool_call>no json</tool_call>", Read("<tool_call>no json</tool_call>")),
    ("hermes", '<tool_call>{"x": 1}</tool_call>', Read('<tool_call>{"x": 1}</tool_call>')),
    ("hermes", '<tool_call>{"name": 3}', Read('<tool_call>{"name": 3}')),
    ("hermes", '<tool_call>{"name": "g", "argu', Read('<tool_call>{"name": "g", "argu')),
    ("hermes", '<tool_call>{"name": "g", "arguments": {"a": ', Read(calls=[("g", '{"a": ')])),
    ("hermes", "a <tool_ca", Read("a <tool_ca")),
    ("hermes", "<<tool_call>>", Read("<<tool_call>>")),
    ("think_hermes", f"<think>why</think>\n<tool_call>{CALL}</tool_call>", Read("", "why", [("f", ARGS)])),
    ("mistral", "text", Read("text")),
    ("mistral", f"[TOOL_CALLS] [{CALL}]", Read(calls=[("f", ARGS)])),
    ("mistral", f"[TOOL_CALLS][{CALL}, {CALL}]", Read(calls=[("f", ARGS), ("f", ARGS)])),
    ("mistral", f"[TOOL_CALLS]f{ARGS}", Read(calls=[("f", ARGS)])),
    ("mistral", f"ok [TOOL_CALLS]f[ARGS]{ARGS}[TOOL_CALLS]g[ARGS]{{}}", Read("ok", calls=[("f", ARGS), ("g", "{}")])),
    ("mistral", f"[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{ARGS}", Read(calls=[("f", ARGS)])),
    ("mistral", "[TOOL_CALLS]?!", Read("[TOOL_CALLS]?!")),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}', Read(calls=[("f", '{"a": 1}')])),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}', Read(calls=[("f", "{}")])),
    (
        "llama3",
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
        Read(calls=[("f", '{"a": 1}'), ("g", "{}")]),
    ),
    ("llama3", '{"name": "Bob", "age": 3}', Read('{"name": "Bob", "age": 3}')),
    ("llama3", "{ not json", Read("{ not json")),
    ("llama3", "text {", Read("text {")),
    ("llama3", "<|python_tag|>print(1)", Read("<|python_tag|>print(1)")),
    ("llama3", "<|pyth", Read("<|pyth")),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>",
        Read("four", "hm"),
    ),
    (
        "harmony",
        THOUGHT + "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" + '{"a": 1}<|call|>',
        Read("", "a", [("f", '{"a": 1}')]),
    ),
    (
        "harmony",
        TO_F + "<|message|>{}<|end|><|start|>assistant to=functions.g<|channel|>commentary<|message|>{}",
        Read(calls=[("f", "{}"), ("g", "{}")]),
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>",
        Read("", "a\nb"),
    ),
    ("harmony", "no format at all", Read("no format at all")),
    ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant", Read("", "a")),
    ("harmony", "<|channel|>final<|message|>a <|x|> b", Read("a <|x|> b")),
    ("harmony_final", '{"a": 1}<|return|>', Read('{"a": 1}')),
    ("forced", f"[{CALL}]", Read(calls=[("f", ARGS)])),
    ("forced", f" [ {CALL} , {CALL} ]", Read(calls=[("f", ARGS), ("f", ARGS)])),
    ("forced", "[]", Read("[]")),
    ("forced", "oops", Read("oops")),
    ("named", '{"a": 1}', Read(calls=[("f", '{"a": 1}')])),
    ("named", "", Read()),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_outputs_are_read_as_expected(name: str, text: str, expected: Read) -> None:
    assert read(PARSERS[name](), [text]) == expected


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_single_characters_read_the_same(name: str, text: str, expected: Read) -> None:
    assert read(PARSERS[name](), list(text)) == expected


FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|channel|>",
    "<|message|>", "<|end|>", "<|start|>", "assistant", "analysis", "final", " to=functions.f", "<|call|>", CALL, ARGS,
    '{"name": "f"', ', "arguments": ', "{", "}", "[", "]", ",", ";", '"', "\\", " ", "\n", "a", "é", "<", "<t", "f{}",
    "null", "1", ":",
]  # fmt: skip


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:stop] for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("name", PARSERS)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14), places=st.lists(st.integers(0, 10_000), max_size=12))
def test_the_cut_never_matters(name: str, parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    whole = read(PARSERS[name](), [text])
    assert read(PARSERS[name](), cut(text, places)) == whole
    assert read(PARSERS[name](), list(text)) == whole


@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_text_without_marks_is_content_unchanged(parts: list[str]) -> None:
    text = "".join(part for part in parts if "<" not in part and "[T" not in part)
    for name in ("think", "hermes", "think_hermes", "mistral"):
        assert read(PARSERS[name](), [text]) == Read(text)


def kinds(tool: str, reasoning: str, written: str = "") -> str:
    chosen = choose_format(tool, reasoning, written)
    if chosen.is_harmony:
        return "harmony"
    calls = next((name for name, known in CALL_FORMATS.items() if known is chosen.calls), "")
    return f"{calls}|{chosen.reasoning.begin if chosen.reasoning else ''}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", "|"),
        ("<user>probe", "|"),
        ('<tool_call>\n{"name": "probe_function", "arguments": {"a": 1}}\n</tool_call>', "hermes|"),
        ("<tool_call>\n<function=probe_function>", "|"),
        ('<think>\nprobe\n</think>\n<tool_call>\n{"name"', "hermes|<think>"),
        ('[TOOL_CALLS] [{"name": "probe_function"', "mistral|"),
        ("<|python_tag|>", "llama3|"),
        ('<|start_header_id|>assistant{"name": "probe_function", "parameters": {"a": 1}}', "llama3|"),
        ("<|start|>assistant<|channel|>final<|message|>", "harmony"),
        ("[THINK] [/THINK]", "|[THINK]"),
    ],
)
def test_what_the_template_writes_chooses_the_parsers(written: str, expected: str) -> None:
    assert kinds("auto", "auto", written) == expected


def test_names_choose_the_parsers() -> None:
    assert kinds("hermes", "none", "<think></think>") == "hermes|"
    assert kinds("none", "deepseek_r1") == "|<think>"
    assert kinds("harmony", "auto") == "harmony"


@pytest.mark.parametrize("names", [("qwen99", "auto"), ("auto", "x"), ("harmony", "think")])
def test_wrong_names_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose_format(*names, "")
    assert caught.value.param in ("tool_call_parser", "reasoning_parser")


def test_a_prompt_that_ends_inside_the_reasoning_begins_there() -> None:
    chosen = choose_format("none", "think", "")
    parser = chosen.create_parser("<assistant><think>\n", with_tools=False)
    assert read(parser, ["hm</think>x"]) == Read("x", "hm")
    parser = chosen.create_parser("<assistant><think>\n\n</think>\n\n", with_tools=False)
    assert read(parser, ["x"]) == Read("x")


def test_calls_are_content_when_no_tools_were_offered() -> None:
    chosen = choose_format("hermes", "none", "")
    text = f"<tool_call>{CALL}</tool_call>"
    assert read(chosen.create_parser("", with_tools=False), [text]) == Read(text)


def test_forced_outputs_are_calls() -> None:
    assert read(create_forced_parser(Forced("g")), ['{"a"', ": 1}"]) == Read(calls=[("g", '{"a": 1}')])
    assert read(create_forced_parser(Forced()), [f"[{CALL}]"]) == Read(calls=[("f", ARGS)])
