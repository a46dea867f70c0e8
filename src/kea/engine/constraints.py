"""Structured output: compiles constraints to grammars over a vocabulary and follows one output through each.

Rests on llguidance, imported when the first constraint is compiled. Owns the cache of compiled grammars and the limits
that keep a hostile one from holding up the engine: size of the source, fuel of the compiler and of each mask, and a
deadline for compiling. Knows no sampling but the mask, no text.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from kea.engine.grammars import grammar_text
from kea.engine.transfer import send, send_index
from kea.errors import InvalidRequest, LimitExceeded, Unsupported
from kea.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS = 300


class GrammarTokenizer(Protocol):
    """What a grammar needs of a tokenizer: its tokenizer.json as text, and the tokens that may end an output."""

    @property
    def tokenizer_json(self) -> str: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """Bounds of the work for one constraint. Fuel counts llguidance's lexer operations: what needs more is refused.

    With these, the worst regular expressions that were tried cost 0.1 s and 50 MB.

    `compile_timeout_s` bounds the wait for a grammar; its thread may run on, and until it ends no other is begun.
    """

    compile_timeout_s: float = 2.0
    compile_fuel: int = 200_000
    step_fuel: int = 50_000
    step_items: int = 50_000
    lexer_states: int = 50_000
    num_cached: int = 32


class ConstraintState:
    """Where one output stands in its grammar. Made by `ConstraintCompiler.compile`, one per generation."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._words = torch.zeros(num_words, dtype=torch.int32)

    @property
    def is_complete(self) -> bool:
        """Whether what was accepted matches the grammar as it is."""
        return self._matcher.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """Whether the grammar can go no further: the output is complete, and only an end token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def fill_mask(self) -> torch.Tensor:
        """Return the bits of the tokens that may come next [ceil(V / 32)] int32; overwritten by the next call.

        End tokens are among them only where the output is complete. Raises `InvalidRequest` where the grammar turns out
        too complex to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), self._words.numel() * 4)
        self._check()
        return self._words

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of the tokens, from the first on, may follow one another here; the state stays."""
        return int(self._matcher.validate_tokens(list(token_ids)))

    def accept(self, token_id: int) -> None:
        """Go on by a token that the mask allowed. Raises `InvalidRequest` where it did not, or as `fill_mask` does."""
        self._matcher.consume_token(token_id)
        self._check()

    def clone(self) -> ConstraintState:
        """Return an independent state at the same place."""
        return ConstraintState(self._matcher.deep_copy(), self._words.numel())

    def _check(self) -> None:
        if self._matcher.is_error():
            message = _shorten(self._matcher.get_error())
            raise InvalidRequest(
                f"The constraint cannot be followed any further: {message}",
                hint="A simpler grammar (fewer alternatives, shorter repetitions) can.",
                param="constraint",
            )


class ConstraintCompiler:
    """Compiles constraints for one tokenizer and keeps the compiled grammars used last. Lives as long as its engine."""

    def __init__(self, tokenizer: GrammarTokenizer, limits: ConstraintLimits | None = None) -> None:
        self._tokenizer = tokenizer
        self._limits = limits or ConstraintLimits()
        self._compiled: OrderedDict[Constraint, LLMatcher | str] = OrderedDict()  # a text: why it is refused
        self._lock = threading.Lock()
        self._running: threading.Thread | None = None

    def compile(self, constraint: Constraint) -> ConstraintState:
        """Return the constraint's state before the first token.

        Raises `InvalidRequest` that names the problem for a grammar that is malformed, unsupported or too large, and a
        retryable `LimitExceeded` while an overdue compilation still runs.
        """
        compiled = self._lookup(constraint)
        if compiled is None:
            grammar = grammar_text(constraint)
            compiled = self._compile_in_time(constraint, grammar)
        if isinstance(compiled, str):
            raise InvalidRequest(f"{constraint.kind} cannot be compiled: {compiled}", param=constraint.kind)
        return ConstraintState(compiled.deep_copy(), -(-self._vocabulary.vocab_size // 32))

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if not self._tokenizer.eos_token_ids:
            raise InvalidRequest("This tokenizer has no end token, which a constraint needs.", param="constraint")
        try:
            return LLTokenizer(self._tokenizer.tokenizer_json, eos_token=list(self._tokenizer.eos_token_ids))
        except ValueError as error:
            reason = _shorten(str(error))
            raise Unsupported(f"Constraints cannot follow this tokenizer: {reason}", param="constraint") from error

    def _lookup(self, constraint: Constraint) -> LLMatcher | str | None:
        with self._lock:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
            return self._compiled.get(constraint)

    def _compile_in_time(self, constraint: Constraint, grammar: str) -> LLMatcher | str:
        """Compile in a thread of its own (the library releases the interpreter), which also fills the cache if late."""
        if self._running is not None and self._running.is_alive():
            raise LimitExceeded(
                "Another constraint is still being compiled.", hint="Try again later.", param="constraint"
            )
        vocabulary = self._vocabulary  # not part of the time that the grammar takes
        thread = threading.Thread(
            target=self._compile_and_store, args=(constraint, grammar, vocabulary), name="constraint", daemon=True
        )
        self._running = thread
        thread.start()
        thread.join(self._limits.compile_timeout_s)
        compiled = self._lookup(constraint)
        if compiled is None:
            raise _overdue(constraint, self._limits.compile_timeout_s)
        return compiled

    def _compile_and_store(self, constraint: Constraint, grammar: str, vocabulary: LLTokenizer) -> None:
        compiled: LLMatcher | str
        try:
            compiled = _compile(grammar, vocabulary, self._limits)
        except Exception as error:
            logger.exception("compiling a constraint failed")
            compiled = f"the compiler failed: {error!r}"
        with self._lock:
            self._compiled[constraint] = compiled
            while len(self._compiled) > self._limits.num_cached:
                self._compiled.popitem(last=False)


def _overdue(constraint: Constraint, timeout_s: float) -> InvalidRequest:
    return InvalidRequest(
        f"{constraint.kind} takes longer than {timeout_s:g} s to compile.",
        hint="Use a simpler one: smaller bounds, fewer alternatives.",
        param=constraint.kind,
    )


def _compile(grammar: str, vocabulary: LLTokenizer, limits: ConstraintLimits) -> LLMatcher | str:
    """Return the grammar at its beginning, or the reason why it is refused. A step is tried: fuel may end there."""
    from llguidance import LLMatcher, LLParserLimits

    parser_limits = LLParserLimits(
        initial_lexer_fuel=limits.compile_fuel,
        step_lexer_fuel=limits.step_fuel,
        step_max_items=limits.step_items,
        max_lexer_states=limits.lexer_states,
        verbose_errors=False,
    )
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=parser_limits)
    trial = matcher.deep_copy()
    if not trial.is_error():
        bits = np.unpackbits(np.frombuffer(trial.compute_bitmask(), dtype=np.uint8), bitorder="little")
        bits[vocabulary.eos_tokens] = 0
        if bits.any() and not trial.is_error():
            trial.consume_token(int(bits.argmax()))
    return _shorten(trial.get_error()) if trial.is_error() else matcher


def _shorten(message: str) -> str:
    """Return the telling line of a compiler's message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (errors or lines or ["unknown error"])[0][:_MAX_MESSAGE_CHARS]


def apply_masks(logits: torch.Tensor, masks: Sequence[torch.Tensor | None]) -> None:
    """Set the logits [R, V] fp32 of tokens that a row's mask lacks to minus infinity, in place; None allows everything.

    A mask has one bit per token, lowest first, in words of int32; tokens behind its end are not allowed.
    """
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        return
    words = torch.stack([mask for mask in masks if mask is not None])
    bits = torch.arange(256, dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    table = send(torch.zeros(256, 8).masked_fill_(bits == 0, -torch.inf), logits.device)
    octets = send(words.view(torch.uint8), logits.device)
    added = torch.nn.functional.embedding(octets.int(), table).flatten(1)[:, : logits.shape[-1]]
    missing = logits.shape[-1] - added.shape[-1]
    if missing > 0:
        added = torch.nn.functional.pad(added, (0, missing), value=-torch.inf)
    if len(rows) == len(logits):
        logits.add_(added)
    else:
        logits.index_add_(0, send_index(rows, logits.device), added)
