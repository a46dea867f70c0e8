"""Structured output: what the masks allow matches the grammar, and hostile grammars are refused by name."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kea.engine import constraints
from kea.engine.constraints import ConstraintCompiler, ConstraintLimits, ConstraintState
from kea.engine.sampling import Drawn, Sampler, SamplingRow
from kea.errors import InvalidRequest, KeaError, LimitExceeded
from kea.types import Constraint, Sampling
from tests.engine.vocabulary import create_vocabulary

VOCABULARY = create_vocabulary()
ENDS = set(VOCABULARY.eos_token_ids)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(VOCABULARY)


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def allowed(state: ConstraintState) -> list[int]:
    bits = np.unpackbits(state.fill_mask().numpy().view(np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def spell(state: ConstraintState, text: str) -> None:
    for value in text.encode():
        state.accept(value)


def walk(state: ConstraintState, seed: int, max_tokens: int = 400) -> str | None:
    """Follow the masks at random to the end; None if it is not reached."""
    rng = np.random.default_rng(seed)
    token_ids: list[int] = []
    while not state.is_stopped and len(token_ids) < max_tokens:
        choices = allowed(state)
        assert bool(ENDS & set(choices)) == state.is_complete, "an end token is allowed exactly at a complete output"
        printable = [t for t in choices if t in ENDS or VOCABULARY.pieces[t].isascii()]
        token_ids.append(int(rng.choice(sorted(ENDS & set(choices)) or printable or choices)))
        state.accept(token_ids[-1])
    return VOCABULARY.text(token_ids) if state.is_stopped else None


@pytest.mark.parametrize("seed", range(10))
def test_an_output_that_follows_the_masks_fulfils_the_schema(compiler: ConstraintCompiler, seed: int) -> None:
    text = walk(compiler.compile(schema(PERSON)), seed)
    assert text is not None
    person = json.loads(text)
    assert list(person) == ["name", "age"]
    assert len(person["name"]) <= 9
    assert 0 <= person["age"] <= 150


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [r"[a-z]{2,5}-\d+", r"(yes|no)(, (yes|no))*", r"[ \t]*[^a-z]{3}", "caf\xe9?"])
def test_an_output_that_follows_the_masks_matches_the_regex(
    compiler: ConstraintCompiler, pattern: str, seed: int
) -> None:
    text = walk(compiler.compile(Constraint("regex", pattern)), seed)
    assert text is not None
    assert re.fullmatch(pattern, text)


def test_every_choice_and_nothing_else_can_be_output(compiler: ConstraintCompiler) -> None:
    choices = ["yes", "no", 'say "no"\n', "caf\xe9 \U0001f600", "\\d{2}", "\x7f\x00 /"]
    constraint = Constraint("choice", json.dumps(choices))
    for choice in choices:
        state = compiler.compile(constraint)
        spell(state, choice)
        assert state.is_complete
    assert {walk(compiler.compile(constraint), seed) for seed in range(20)} <= set(choices)


def test_a_json_object_is_any_object_with_bounded_blank_space(compiler: ConstraintCompiler) -> None:
    state = compiler.compile(Constraint("json_object", ""))
    assert {VOCABULARY.pieces[t][:1] for t in allowed(state)} == {b"{"}
    spell(state, '{"a": [1, {"b": null}], "c":')
    num_blanks = 0
    while ord(" ") in allowed(state):
        state.accept(ord(" "))
        num_blanks += 1
        assert num_blanks < 100
    spell(state, "true}")
    assert state.is_complete


def test_a_lark_grammar_may_hold_a_schema(compiler: ConstraintCompiler) -> None:
    state = compiler.compile(
        Constraint("grammar", 'start: "call " args\nargs: %json {"type": "integer", "multipleOf": 5}')
    )
    spell(state, "call 1")
    assert ord("5") in allowed(state)
    spell(state, "5")
    assert state.is_complete


def test_a_grammar_that_can_go_no_further_stops(compiler: ConstraintCompiler) -> None:
    state = compiler.compile(Constraint("regex", "ab?"))
    state.accept(ord("a"))
    assert (state.is_complete, state.is_stopped) == (True, False)
    assert set(allowed(state)) == {*ENDS, ord("b")}
    state.accept(ord("b"))
    assert (state.is_complete, state.is_stopped) == (True, True)
    assert set(allowed(state)) == ENDS


@pytest.mark.parametrize("end", sorted(ENDS))
def test_each_end_token_ends_a_complete_output(compiler: ConstraintCompiler, end: int) -> None:
    state = compiler.compile(Constraint("regex", "a+"))
    state.accept(ord("a"))
    state.accept(end)
    assert state.is_stopped


def test_states_and_clones_are_independent(compiler: ConstraintCompiler) -> None:
    constraint = Constraint("regex", "a[bc]d")
    first, second = compiler.compile(constraint), compiler.compile(constraint)
    first.accept(ord("a"))
    clone = first.clone()
    spell(first, "bd")
    assert first.is_stopped
    assert set(allowed(clone)) == {ord("b"), ord("c")}
    assert allowed(second) == [ord("a")]


def test_a_token_against_the_grammar_is_refused(compiler: ConstraintCompiler) -> None:
    state = compiler.compile(Constraint("regex", "ab"))
    with pytest.raises(InvalidRequest, match="cannot be followed"):
        state.accept(ord("x"))
    assert not state.is_stopped, "an error is not an end"


BAD = [
    (Constraint("regex", "[a-z"), "unclosed character class"),
    (Constraint("regex", r"(a)\1"), "backreferences are not supported"),
    (Constraint("regex", "(?=a)b"), "look-ahead"),
    (Constraint("regex", "\ud800"), "not valid Unicode"),
    (Constraint("json_schema", "{"), "not valid JSON"),
    (Constraint("json_schema", "[]"), "must be an object"),
    (Constraint("json_schema", '"\ud800"'), "not valid Unicode"),
    (schema({"type": "strin"}), "Invalid type: strin"),
    (schema({"$ref": "#/$defs/missing"}), "missing"),
    (schema({"$ref": "http://example.org/schema"}), "example.org"),
    (schema({"type": "object", "not": {"type": "string"}}), "not"),
    (schema(False), "must be an object"),
    (schema({"type": "string", "const": "\ud800"}), "not valid Unicode"),
    (Constraint("choice", "[]"), "at least one string"),
    (Constraint("choice", '["a", ""]'), "none of them empty"),
    (Constraint("choice", '["\\ud800"]'), "choice"),
    (Constraint("choice", "yes|no"), "not valid JSON"),
    (Constraint("grammar", "start: missing"), "missing"),
    (Constraint("grammar", "start: ("), "grammar"),
]


@pytest.mark.parametrize(("constraint", "message"), BAD, ids=lambda value: repr(value)[:60])
def test_a_malformed_constraint_is_refused_by_name(
    compiler: ConstraintCompiler, constraint: Constraint, message: str
) -> None:
    for _ in range(2):  # compiled, then remembered
        with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
            compiler.compile(constraint)
        assert caught.value.param == constraint.kind
        assert len(str(caught.value)) < 500


def nested(depth: int) -> Constraint:
    inside = '{"type":"object","properties":{"a":' * depth + '{"type":"string"}' + "}}" * depth
    return Constraint("json_schema", inside)


HOSTILE = [
    nested(100),
    nested(1500),
    Constraint("json_schema", "[" * 60_000),
    Constraint("grammar", "start: x\nx: %json " + "[" * 60_000),
    Constraint("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    Constraint("regex", "(" * 20_000 + "a" + ")" * 20_000),
    Constraint("regex", "a" * 70_000),
    Constraint("regex", "(a{1000}){1000}"),
    Constraint("regex", "a{4000000000}"),
    Constraint("regex", "(a?){5000}a{5000}"),
    schema({"type": "string", "pattern": "^(a{1000}){1000}$", "minLength": 10}),
    Constraint("choice", json.dumps(["word"] * 20_000)),
    schema({"type": "integer", "multipleOf": 999_983}),
    schema({"anyOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 0.83}]}),
    schema({"multipleOf": 1e300}),
    Constraint("grammar", 'start: %json {"type": "integer", "multip\\u006ceOf": 999983}'),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("constraint", HOSTILE, ids=lambda constraint: constraint.source[:40])
def test_a_hostile_constraint_is_refused(compiler: ConstraintCompiler, constraint: Constraint) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(constraint)
    assert caught.value.param == constraint.kind
    assert len(str(caught.value)) < 500


DEMANDING = [
    Constraint("regex", r"(\w+\s?)+$"),
    Constraint("regex", "(x+x+)+y"),
    Constraint("regex", ".*a.{30}"),
    Constraint("regex", "[ab]*a[ab]{300}"),
    Constraint("regex", "|".join(f"{index * 7919:x}" for index in range(8000))),
    Constraint("choice", json.dumps([f"word{index}" for index in range(5000)])),
    schema({"enum": [f"value {index}" for index in range(3000)]}),
    schema({"type": "string", "maxLength": 10**9}),
    schema({"type": "array", "minItems": 10**9}),
    schema({"type": "object", "properties": {f"p{i}": {"type": ["string", "null"]} for i in range(400)}}),
    schema({"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}),
    schema({"type": "number", "multipleOf": 0.25}),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("constraint", DEMANDING, ids=lambda constraint: constraint.source[:40])
def test_a_demanding_but_bounded_constraint_works(compiler: ConstraintCompiler, constraint: Constraint) -> None:
    """Among them what makes a backtracking matcher hang."""
    walk(compiler.compile(constraint), seed=0, max_tokens=50)


def test_a_grammar_that_gets_too_complex_on_the_way_fails_by_name(compiler: ConstraintCompiler) -> None:
    state = compiler.compile(Constraint("regex", "x[yz]{3}(a{1000}){1000}"))
    spell(state, "xyyy")
    allowed(state)
    with pytest.raises(InvalidRequest, match="cannot be followed any further") as caught:
        spell(state, "aa")
    assert caught.value.param == "constraint"


def test_an_overdue_grammar_is_refused_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, compile_really = threading.Event(), constraints._compile

    def compile_slowly(*parts: object) -> object:
        gate.wait(30)
        return compile_really(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(constraints, "_compile", compile_slowly)
    compiler = ConstraintCompiler(VOCABULARY, ConstraintLimits(compile_timeout_s=0.05))
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.05 s"):
        compiler.compile(Constraint("regex", "a"))
    with pytest.raises(LimitExceeded) as caught:
        compiler.compile(Constraint("regex", "b"))
    assert caught.value.retryable
    gate.set()
    assert compiler._running is not None
    compiler._running.join(30)
    assert allowed(compiler.compile(Constraint("regex", "a"))) == [ord("a")], "finished late, and remembered"


def test_a_compiler_that_breaks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_badly(*parts: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr(constraints, "_compile", compile_badly)
    with pytest.raises(InvalidRequest, match=r"the compiler failed: RuntimeError\('broken'\)"):
        ConstraintCompiler(VOCABULARY).compile(Constraint("regex", "a"))


def test_compiled_grammars_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_really = constraints._compile

    def compile_and_count(grammar: str, *rest: object) -> object:
        compiled.append(grammar)
        return compile_really(grammar, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(constraints, "_compile", compile_and_count)
    compiler = ConstraintCompiler(VOCABULARY, ConstraintLimits(num_cached=2))
    for pattern in "abaacab":  # a, b kept; c drops b; b drops c
        compiler.compile(Constraint("regex", pattern))
    assert len(compiled) == 4


def test_a_tokenizer_without_an_end_is_refused() -> None:
    vocabulary = type(VOCABULARY)(VOCABULARY.pieces, ())
    with pytest.raises(InvalidRequest, match="no end token"):
        ConstraintCompiler(vocabulary).compile(Constraint("regex", "a"))


def test_constrained_rows_sample_valid_outputs_beside_free_ones(compiler: ConstraintCompiler) -> None:
    num_tokens = len(VOCABULARY.pieces)
    sampler = Sampler(num_tokens, lambda: 0)
    wanted = [schema(PERSON), None, Constraint("regex", "[ab]{20}"), Constraint("choice", '["yes", "no"]')]
    states = [compiler.compile(constraint) if constraint else None for constraint in wanted]
    sampling = [sampler.create_state(Sampling(seed=seed, top_p=0.9), []) for seed in range(4)]
    outputs: list[list[int]] = [[] for _ in wanted]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        open_rows = [i for i, state in enumerate(states) if state is None or not state.is_stopped]
        masks = [state.fill_mask() if (state := states[i]) else None for i in open_rows]
        rows = [SamplingRow(sampling[i], mask) for i, mask in zip(open_rows, masks, strict=True)]
        drawn = sampler.sample(torch.randn(len(rows), num_tokens + 7, generator=generator), rows)
        for i, result in zip(open_rows, drawn, strict=True):
            outputs[i].append(token_of(result))
            if (state := states[i]) is not None:
                state.accept(outputs[i][-1])
    texts = [VOCABULARY.text(outputs[i]) for i in (2, 3)]
    assert re.fullmatch("[ab]{20}", texts[0])
    assert texts[1] in {"yes", "no"}
    assert len(outputs[1]) == 300


def token_of(result: Drawn | KeaError) -> int:
    assert isinstance(result, Drawn), result
    return result.token_id


def test_a_real_tokenizer_fulfils_what_a_grammar_needs(stories260k: Path) -> None:
    from kea.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(stories260k)
    state = ConstraintCompiler(tokenizer).compile(Constraint("choice", '["Once upon a time"]'))
    token_ids: list[int] = []
    while not state.is_stopped:
        token_ids.append(max(allowed(state), key=lambda t: len(tokenizer.token_bytes(t))))
        state.accept(token_ids[-1])
    assert b"".join(tokenizer.token_bytes(t) for t in token_ids) == b"Once upon a time"


@pytest.mark.parametrize(
    ("text", "is_allowed"), [('{\n  "a":', True), ('{ "a":', True), ("{\n\n", False), ("{  ", False), ("{\t", False)]
)
def test_white_space_is_a_space_or_a_line_with_its_indentation(
    compiler: ConstraintCompiler, text: str, *, is_allowed: bool
) -> None:
    state = compiler.compile(schema({"type": "object", "required": ["a"]}))
    for value in text.encode()[:-1]:
        state.accept(value)  # the id of a byte is its value
    assert (text.encode()[-1] in allowed(state)) is is_allowed
