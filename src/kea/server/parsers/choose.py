"""Which parsers a model needs: by name, or by what its chat template writes (see `probe`). Knows no HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kea.errors import InvalidRequest
from kea.server.parsers.base import Chain, Parser, PlainParser
from kea.server.parsers.calls import (
    HERMES_BEGIN,
    LLAMA_BEGIN,
    MISTRAL_BEGIN,
    LeadingCalls,
    NamedCall,
    forced_calls,
    hermes_calls,
    mistral_calls,
)
from kea.server.parsers.harmony import CHANNEL, FINAL_HEADER, HarmonyParser
from kea.server.parsers.reasoning import TagReasoning

AUTO, NONE, HARMONY = "auto", "none", "harmony"
PROBE_NAME = "probe_function"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a family writes tool calls: `mark` stands before them, `sign` is a pattern of what its template writes."""

    mark: str
    sign: str
    create: Callable[[], Parser]
    call_id_len: int = 24


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The tags around a family's reasoning. `is_implied`: it writes no opening tag, whatever the prompt ends with."""

    begin: str
    end: str
    is_implied: bool = False


CALL_FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat(HERMES_BEGIN, re.escape(HERMES_BEGIN) + r"\s*\{", hermes_calls),
    "mistral": CallFormat(MISTRAL_BEGIN, re.escape(MISTRAL_BEGIN), mistral_calls, call_id_len=9),
    "llama3": CallFormat(
        LLAMA_BEGIN, re.escape(LLAMA_BEGIN) + r'|\{"name": "' + PROBE_NAME + r'", "parameters"', LeadingCalls
    ),
}
REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "think": ReasoningFormat("<think>", "</think>"),
    "deepseek_r1": ReasoningFormat("<think>", "</think>", is_implied=True),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "seed": ReasoningFormat("<seed:think>", "</seed:think>"),
}
TOOL_CALL_PARSERS = (AUTO, NONE, HARMONY, *CALL_FORMATS)
REASONING_PARSERS = (AUTO, NONE, HARMONY, *REASONING_FORMATS)


@dataclass(frozen=True, slots=True)
class Forced:
    """The output is forced to be tool calls: arguments of the function `name`, or (None) a list of calls."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a model's output is read. Harmony does both; else either part may be missing.

    `hidden`: the marks that are special tokens of the model, so that they have no text unless it is asked for.
    """

    calls: CallFormat | None = None
    reasoning: ReasoningFormat | None = None
    is_harmony: bool = False
    hidden: frozenset[str] = frozenset()

    @property
    def call_id_len(self) -> int:
        return self.calls.call_id_len if self.calls is not None else 24

    @property
    def constrained_start(self) -> str:
        """What stands before an output that must match a schema, behind the template's own beginning of the turn."""
        return FINAL_HEADER if self.is_harmony else ""

    def shows_special_tokens(self, *, with_tools: bool) -> bool:
        """Return whether the parsers read marks that are special tokens."""
        return self.is_harmony or not self.hidden.isdisjoint(self.marks(with_tools=with_tools))

    def marks(self, *, with_tools: bool) -> tuple[str, ...]:
        """Return the marks that the parsers of an output look for first."""
        calls = (self.calls.mark,) if with_tools and self.calls is not None else ()
        return calls if self.reasoning is None else (*calls, self.reasoning.begin, self.reasoning.end)

    def create_parser(self, prompt: str, *, with_tools: bool, is_constrained: bool = False) -> Parser:
        """Create the parser of one output; the end of `prompt` says whether it begins inside the reasoning.

        An output that must match a schema has neither reasoning nor calls: it begins behind `constrained_start`.
        """
        if is_constrained:
            return HarmonyParser(begins_final=True) if self.is_harmony else PlainParser()
        if self.is_harmony:
            return HarmonyParser()
        calls = self.calls.create() if with_tools and self.calls is not None else PlainParser()
        if self.reasoning is None:
            return calls
        tags = self.reasoning
        is_inside = tags.is_implied or prompt.rstrip().endswith(tags.begin)
        return Chain(TagReasoning(tags.begin, tags.end, begins_inside=is_inside), calls)


def create_forced_parser(forced: Forced) -> Parser:
    """Create the parser of an output that a schema forced to be tool calls."""
    return forced_calls() if forced.name is None else NamedCall(forced.name)


def choose_format(tool_call_parser: str, reasoning_parser: str, written: str) -> OutputFormat:
    """Return the format for the configured names; "auto" goes by `written`, what the chat template writes of a probe.

    Raises what `check_parsers` raises.
    """
    check_parsers(tool_call_parser, reasoning_parser)
    names = {tool_call_parser, reasoning_parser}
    if HARMONY in names or (CHANNEL in written and names == {AUTO}):
        return OutputFormat(is_harmony=True)
    return OutputFormat(_choose_calls(tool_call_parser, written), _choose_reasoning(reasoning_parser, written))


def _choose_calls(name: str, written: str) -> CallFormat | None:
    if name == AUTO:
        name = next((key for key, known in CALL_FORMATS.items() if re.search(known.sign, written)), NONE)
    return CALL_FORMATS.get(name)


def _choose_reasoning(name: str, written: str) -> ReasoningFormat | None:
    if name == AUTO:
        name = next((key for key, tags in REASONING_FORMATS.items() if tags.begin in written), NONE)
    return REASONING_FORMATS.get(name)


def check_parsers(tool_call_parser: str, reasoning_parser: str) -> None:
    """Raise `InvalidRequest` for unknown names, and for harmony beside another."""
    _check_name("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS)
    _check_name("reasoning_parser", reasoning_parser, REASONING_PARSERS)
    names = {tool_call_parser, reasoning_parser}
    if HARMONY in names and not names <= {AUTO, HARMONY}:
        raise InvalidRequest(
            "harmony reads both tool calls and reasoning; set both parsers to it.", param="tool_call_parser"
        )


def _check_name(param: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise InvalidRequest(f"{param} is {name!r}; allowed: {', '.join(allowed)}.", param=param)
