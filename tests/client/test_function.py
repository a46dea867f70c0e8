from __future__ import annotations

import copy
import inspect
from collections import deque
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kea
from kea.client.values import parts_of
from kea.errors import InvalidRequest, TemplateError
from kea.program.call import VariableRef
from kea.program.template import Message

# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return"


@kea.function(temperature=0, max_tokens=7)
def write(task: kea.Input, tone, items: kea.Input(separator=", ") = ("a", "b"), *, text: kea.Output(max_tokens=9)):
    """Task: {{task}} ({{tone}})
      indented: {{items}}
    {{text}}
    """


def test_outside_a_session_a_call_renders_the_prompt() -> None:
    prompt = write("x", 3)
    assert isinstance(prompt, str)
    assert prompt == "Task: x (3)\n  indented: a, b\n{{text}}"
    assert write(task=["x", ("y", [1.5])], tone=True, items="z") == "Task: x\ny\n1.5 (True)\n  indented: z\n{{text}}"
    assert write.render("x", "t") == write("x", "t")
    assert isinstance(prompt, kea.Rendered)
    assert prompt.messages is None


def test_what_a_rendered_prompt_lacks_is_told() -> None:
    with pytest.raises(AttributeError, match=r"no 'get': its function was called outside of a session.*with kea\.conn"):
        write("x", 3).get()
    with pytest.raises(AttributeError, match="'Rendered' object has no attribute 'nope'"):
        write("x", 3).nope  # noqa: B018
    assert copy.deepcopy(write("x", 3)) == write("x", 3)


TEXTS = st.text(st.sampled_from("ab \n"), max_size=30).filter(str.strip)


@given(TEXTS)
def test_a_docstring_loses_its_indentation_as_in_python(text: str) -> None:
    def fn(out):
        raise NotImplementedError

    fn.__annotations__["out"] = kea.Output()
    fn.__doc__ = text + "{{out}}"
    lines = inspect.cleandoc(fn.__doc__).split("\n")
    assert [line.rstrip() for line in kea.function(fn).render().split("\n")] == [line.rstrip() for line in lines]


def test_a_tab_in_a_template_stays_a_tab() -> None:
    def table(out: kea.Output):
        raise NotImplementedError

    table.__doc__ = "name\tage\n\n    kea\t7\n    \t{{out}}\n    "
    assert kea.function(table).render() == "name\tage\n\nkea\t7\n\t{{out}}"


def test_values_are_never_read_as_templates() -> None:
    assert write("{{tone}}", "{{text}}").startswith("Task: {{tone}} ({{text}})")


def test_messages_render_below_their_roles() -> None:
    @kea.function(messages=[("system", "be {{how}}"), ("user", "hi"), ("assistant", "{{a}}")])
    def chat(how: kea.Input, a: kea.Output):
        """The docstring of a function with messages is its documentation."""

    prompt = chat("kind")
    assert prompt == "[system]\nbe kind\n[user]\nhi\n[assistant]\n{{a}}"
    assert prompt.messages == (Message("system", "be kind"), Message("user", "hi"), Message("assistant", "{{a}}"))
    assert chat.__doc__ == "The docstring of a function with messages is its documentation."


def test_settings_come_from_the_output_then_the_function_then_the_defaults() -> None:
    options = write.outputs["text"].options
    assert options.stopping.max_tokens == 9
    assert options.sampling.temperature == 0
    assert options.sampling.top_p == 1
    assert not write.outputs["text"].clamp


def test_annotations_may_be_classes_instances_or_annotated() -> None:
    @kea.function
    def mixed(a: Annotated[str, kea.Input], b: Absent, *, c: kea.Output, d: Annotated[str, kea.Output(stop="x")]):  # type: ignore[name-defined]  # noqa: F821
        """{{a}}-{{b}} {{c}} {{d}}"""

    assert mixed(["1", 2], 3) == "1\n2-3 {{c}} {{d}}"
    assert list(mixed.outputs) == ["c", "d"]
    assert mixed.outputs["d"].options.stopping.stop == ("x",)


def test_a_pydantic_model_is_a_schema() -> None:
    class Model:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"type": "object"}

    output = kea.Output(json_schema=Model).resolve("x", {})
    assert output.options.constraint is not None
    assert output.options.constraint.source == '{"type": "object"}'


def define(template: str, *, name: str = "f", messages: Any = None, **annotations: Any) -> Any:
    """Define a function with these annotations."""

    def f() -> None: ...

    f.__doc__, f.__name__ = template, name
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(key, kinds, annotation=value) for key, value in annotations.items()]
    f.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return kea.function(messages=messages)(f)


@pytest.mark.parametrize(
    ("template", "annotations", "message"),
    [
        ("", {"out": kea.Output()}, "no docstring, which is its template"),
        ("{{x}} {{out}}", {"out": kea.Output()}, r"function 'f': the template names \{\{x\}\}"),
        ("{{x}}", {"x": kea.Input}, "function 'f': the template has no output"),
        ("hi", {"out": kea.Output()}, r"does not name the output \{\{out\}\}"),
        ("{{out}}", {"x": kea.Input, "out": kea.Output()}, "does not name the parameter 'x'"),
        ("{{out}} {{_x}}", {"out": kea.Output(), "_x": kea.Output()}, "function 'f': Field names cannot start"),
    ],
)
def test_a_bad_function_is_refused_where_it_is_defined(template: str, annotations: Any, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        define(template, **annotations)


def test_bad_settings_are_refused_where_they_are_written() -> None:
    with pytest.raises(InvalidRequest, match="output 'out': temperature is -1"):
        define("{{out}}", out=kea.Output(temperature=-1))
    with pytest.raises(InvalidRequest, match="unknown key 'temprature'"):
        define("{{out}}", out=kea.Output(temprature=1))  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest, match="unknown key 'colour'"):

        @kea.function(colour="red")  # type: ignore[call-overload,untyped-decorator]
        def coloured(out: kea.Output):
            """{{out}}"""


def test_parameters_must_be_named() -> None:
    with pytest.raises(TemplateError, match=r"takes \*rest"):

        @kea.function
        def many(*rest: kea.Input, out: kea.Output):
            """{{rest}} {{out}}"""


def test_an_annotation_that_cannot_be_evaluated_is_named() -> None:
    limit = 5
    with pytest.raises(TemplateError, match=r"kea\.Output.max_tokens=limit. of 'out' is unusable: name 'limit'"):

        @kea.function
        def local(out: kea.Output(max_tokens=limit)):
            """{{out}}"""

    assert limit == 5


@pytest.mark.parametrize(
    "call",
    [
        write,
        lambda: write("a", "b", "c", "d"),
        lambda: write("a", "b", nope=1),
        lambda: write("a", tone="x", task="y"),
    ],
)
def test_wrong_arguments_are_python_errors(call: Any) -> None:
    with pytest.raises(TypeError):
        call()


def test_wrong_arguments_are_told_with_the_function_and_what_it_takes() -> None:
    with pytest.raises(TypeError, match=r"^write\(.*tone.*\): missing a required argument: "):
        write()
    with pytest.raises(TypeError, match=r"^write\(.*\): got an unexpected keyword argument 'nope'"):
        write(nope=1)


def test_an_output_takes_only_a_variable() -> None:
    with pytest.raises(InvalidRequest, match="output 'text' of write is 'x'"):
        write("a", "b", text="x")


def fake_variable() -> kea.Variable:
    return kea.Variable(object(), "v1", "name", object())  # type: ignore[arg-type]


def test_parts_join_texts_and_keep_variables() -> None:
    variable = fake_variable()
    reference = VariableRef("v1")
    assert parts_of(variable, "\n", "x") == (reference,)
    assert parts_of(["a", "b", [3]], "-", "x") == ("a-b-3",)
    assert parts_of([variable, variable], "", "x") == (reference, reference)
    assert parts_of([["a"], [variable, "b"]], ", ", "x") == ("a, ", reference, ", b")
    assert parts_of([], "-", "x") == ()
    assert parts_of("", "-", "x") == ()
    assert parts_of(["", variable, ""], "-", "x") == ("-", reference, "-")


@pytest.mark.parametrize("value", [None, {"a": 1}, object(), {1, 2}, b"bytes", 1j])
def test_what_is_no_text_is_refused_with_function_input_type_and_what_is_allowed(value: object) -> None:
    kind = type(value).__name__
    wrong = rf"argument 'task' of write is .*\({kind}\); allowed are str, int, float, bool, kea\.Variable, and lists"
    with pytest.raises(InvalidRequest, match="^" + wrong):
        write(value, "calm")
    with pytest.raises(InvalidRequest, match="^item 2 of " + wrong):
        write(["a", ("b", value)], "calm")
    with pytest.raises(InvalidRequest, match=rf"argument 'tone' of write is .*\({kind}\); allowed are str, int, float"):
        write("a", value)


def test_a_plain_parameter_takes_no_list() -> None:
    with pytest.raises(InvalidRequest, match=r"'tone' of write is \['a'\] \(list\).* annotated kea\.Input takes"):
        write("a", ["a"])


def test_a_variable_never_becomes_its_name() -> None:
    variable = fake_variable()
    held = SimpleNamespace(variable=variable)
    for value in ({"k": variable}, {variable}, {"k": [(variable,)]}, {1: variable}.values(), deque([variable]), held):
        with pytest.raises(InvalidRequest, match="a variable in it can only stand alone or in lists"):
            parts_of(value, "-", "x")
    with pytest.raises(InvalidRequest, match="cannot be formatted"):
        f"{variable}"
    assert repr(variable) == "<kea.Variable name, declared>"


@pytest.mark.parametrize("value", [(item for item in "ab"), map(str, [1]), iter([1])])
def test_an_iterator_has_no_text(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"Pass list\(\.\.\.\)"):
        parts_of([value], "-", "argument")


def test_a_text_is_unicode() -> None:
    with pytest.raises(InvalidRequest, match=r"argument has the lone surrogate '\\ud800' at 1"):
        parts_of("a\ud800b", "-", "argument")
    assert parts_of("kéa 🦜", "-", "argument") == ("kéa 🦜",)


def test_a_function_says_what_it_is() -> None:
    assert repr(write) == "<kea.function write(task, tone, items=('a', 'b'), *, text=None)>"
    assert getattr(write, "__name__") == "write"  # noqa: B009 - mypy does not see what update_wrapper sets
