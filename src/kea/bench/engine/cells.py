"""What is measured: cells, each an order for every system, made anew for every round from the seed.

Owns the scenarios' names and their loads. Does not know systems or what their answers show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kea.bench.engine.base import Order
from kea.bench.engine.shapes import FIRST_WORD, Shape

SCENARIOS = ("prefill", "decode", "arrivals", "shared", "cache", "start", "overhead", "latency", "lookup")

SHARED_PREFIX, SHARED_OWN, NUM_GROUPS, GROUP_LEN, NUM_STRANGERS = 2048, 128, 4, 64, 4
OVERHEAD_BATCH, STEADY_BATCH = 32, 8
LOOKUP_BATCHES, LOOKUP_LEN, NUM_GUESSES = (1, 8), 96, 8
ALONE = "arrivals, one at a time"
_WARMUPS = 2
_STEPS_ROOM = 64


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure. `arguments` gives the order of a round; `kv_tokens` are the most that it holds at once."""

    scenario: str
    name: str
    operation: str
    kv_tokens: int
    batch: int
    context: int
    arguments: Callable[[int], Mapping[str, Any]]
    is_own: bool = False

    def order(self, round_idx: int) -> Order:
        return Order(self.operation, self.arguments(round_idx))


@dataclass(frozen=True, slots=True)
class Load:
    """The sizes of a run's cells. `requests` are the arrivals as (offset in s, input tokens, output tokens)."""

    scenarios: tuple[str, ...] = SCENARIOS
    prompt_lens: tuple[int, ...] = (128, 1024, 4096)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)
    contexts: tuple[int, ...] = (128, 2048)
    num_shared: tuple[int, ...] = (32,)
    num_steps: int = 16
    requests: tuple[tuple[float, int, int], ...] = ()
    seed: int = 0


def create_cells(shape: Shape, load: Load) -> list[Cell]:
    """Return the cells of a run in the order in which every round measures them."""
    words = _Words(shape.vocab_size, load.seed)
    makers: dict[str, Callable[[_Words, Load], Iterator[Cell]]] = {
        "prefill": _prefill,
        "decode": _decode,
        "arrivals": _arrivals,
        "shared": _shared,
        "cache": _cache,
        "start": _start,
        "overhead": _overhead,
        "latency": _latency,
        "lookup": _lookup,
    }
    return [cell for name in SCENARIOS if name in load.scenarios for cell in makers[name](words, load)]


class _Words:
    """Prompts of random words: the same key gives the same prompt, whoever asks."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._seed = seed

    def prompt(self, num_tokens: int, *key: object) -> list[int]:
        source = random.Random(f"{self._seed} {num_tokens} {key}")
        first = min(FIRST_WORD, self._vocab_size // 2)
        return [source.randrange(first, self._vocab_size) for _ in range(num_tokens)]

    def prompts(self, count: int, num_tokens: int, *key: object) -> list[list[int]]:
        return [self.prompt(num_tokens, index, *key) for index in range(count)]


def _prefill(words: _Words, load: Load) -> Iterator[Cell]:
    for length in load.prompt_lens:

        def arguments(round_idx: int, length: int = length) -> Mapping[str, Any]:
            return {"prompt": words.prompt(length, "prefill", round_idx)}

        yield Cell("prefill", f"prefill {length}", "prefill", length, 1, length, arguments)


def _decode(words: _Words, load: Load) -> Iterator[Cell]:
    for context in load.contexts:
        for batch in load.batches:
            # The same prompts in every round: a system may keep what it computed of them.
            def arguments(_: int, batch: int = batch, context: int = context) -> Mapping[str, Any]:
                return _steps(words.prompts(batch, context, "decode"), load)

            room = batch * (context + load.num_steps + _STEPS_ROOM)
            yield Cell("decode", f"decode batch {batch}, context {context}", "decode", room, batch, context, arguments)


def _shared(words: _Words, load: Load) -> Iterator[Cell]:
    """Sequences of own tokens behind a common prefix: with it shared, unshared, without it, and without own tokens."""
    for count in load.num_shared:
        shared = f"{count} under {SHARED_PREFIX}"
        whole = count * (SHARED_PREFIX + SHARED_OWN + load.num_steps + _STEPS_ROOM)
        members: list[Any] = [(0, own) for own in words.prompts(count, SHARED_OWN, "own")]

        def tree(share: bool, members: list[Any] = members) -> Callable[[int], Mapping[str, Any]]:
            prefix = words.prompt(SHARED_PREFIX, "prefix")
            return lambda _: _members(load, prefix, [[]], members, share=share)

        def bare(_: int, members: list[Any] = members) -> Mapping[str, Any]:
            return _steps([own for _, own in members], load)

        def empty(_: int, members: list[Any] = members) -> Mapping[str, Any]:
            return _steps([own[:1] for _, own in members], load)

        context = SHARED_PREFIX + SHARED_OWN
        shared_room = SHARED_PREFIX + count * (SHARED_OWN + load.num_steps + _STEPS_ROOM)
        yield Cell("shared", f"shared: {shared}", "shared", shared_room, count, context, tree(True))
        yield Cell("shared", f"unshared: {shared}", "shared", whole, count, context, tree(False))
        yield Cell("shared", f"no prefix: {count}", "decode", shared_room, count, SHARED_OWN, bare)
        yield Cell("shared", f"no context: {count}", "decode", shared_room, count, 1, empty)
        yield _two_level(words, load, count)


def _two_level(words: _Words, load: Load, count: int) -> Cell:
    """Return a tree of two levels with strangers in the batch, shared."""

    def arguments(_: int) -> Mapping[str, Any]:
        members = [(index % NUM_GROUPS, own) for index, own in enumerate(words.prompts(count, SHARED_OWN, "own"))]
        groups = words.prompts(NUM_GROUPS, GROUP_LEN, "group")
        strangers = words.prompts(NUM_STRANGERS, SHARED_OWN, "stranger")
        prefix = words.prompt(SHARED_PREFIX, "prefix")
        return {**_members(load, prefix, groups, members, share=True), "strangers": strangers}

    batch = count + NUM_STRANGERS
    room = SHARED_PREFIX + NUM_GROUPS * GROUP_LEN + batch * (SHARED_OWN + load.num_steps + _STEPS_ROOM)
    name = f"tree: {count} in {NUM_GROUPS} groups under {SHARED_PREFIX}, {NUM_STRANGERS} strangers"
    return Cell("shared", name, "shared", room, batch, SHARED_PREFIX + GROUP_LEN + SHARED_OWN, arguments)


def _members(
    load: Load, prefix: list[int], groups: list[list[int]], members: Sequence[Any], *, share: bool
) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "groups": groups,
        "prompts": members,
        "strangers": [],
        "steps": load.num_steps,
        "warmups": _WARMUPS,
        "share": share,
    }


def _cache(words: _Words, load: Load) -> Iterator[Cell]:
    length = 1024 if not load.prompt_lens else min(1024, max(load.prompt_lens))

    def arguments(round_idx: int) -> Mapping[str, Any]:
        return {"prompt": words.prompt(length, "cache", round_idx)}

    yield Cell("cache", f"prefix cache, {length} tokens", "warm", length, 1, length, arguments)


def _start(words: _Words, _: Load) -> Iterator[Cell]:
    def arguments(round_idx: int) -> Mapping[str, Any]:
        return {"prompt": words.prompt(16, "start", round_idx)}

    yield Cell("start", "process start to first token", "prefill", 16, 1, 16, arguments)


def _overhead(words: _Words, load: Load) -> Iterator[Cell]:
    def arguments(_: int) -> Mapping[str, Any]:
        return _steps(words.prompts(OVERHEAD_BATCH, 128, "decode"), load)

    room = OVERHEAD_BATCH * (128 + load.num_steps + _STEPS_ROOM)
    name = f"overhead, batch {OVERHEAD_BATCH}"
    yield Cell("overhead", name, "overhead", room, OVERHEAD_BATCH, 128, arguments, is_own=True)


def _latency(words: _Words, load: Load) -> Iterator[Cell]:
    def arguments(round_idx: int) -> Mapping[str, Any]:
        prompts = words.prompts(4 * STEADY_BATCH, 128, "steady", round_idx)
        return {"prompts": prompts, "output_len": 2 * load.num_steps, "num_running": STEADY_BATCH}

    room = STEADY_BATCH * (128 + 2 * load.num_steps + _STEPS_ROOM)
    name = f"latency model, {STEADY_BATCH} running"
    yield Cell("latency", name, "steady", room, STEADY_BATCH, 128, arguments, is_own=True)


def _lookup(words: _Words, _: Load) -> Iterator[Cell]:
    """A passage three times and the begin of a fourth: what follows is found in the prompt, if the model repeats."""
    for batch in LOOKUP_BATCHES:

        def arguments(round_idx: int, batch: int = batch) -> Mapping[str, Any]:
            passages = words.prompts(batch, 64, "lookup", round_idx)
            prompts = [passage * 3 + passage[:8] for passage in passages]
            return {"prompts": prompts, "output_len": LOOKUP_LEN, "num_guesses": NUM_GUESSES}

        room = batch * (200 + LOOKUP_LEN + _STEPS_ROOM)
        yield Cell("lookup", f"prompt lookup, batch {batch}", "lookup", room, batch, 200, arguments, is_own=True)


def _arrivals(words: _Words, load: Load) -> Iterator[Cell]:
    def arguments(round_idx: int) -> Mapping[str, Any]:
        requests = [
            (offset_s, words.prompt(input_len, "arrival", round_idx, index), output_len)
            for index, (offset_s, input_len, output_len) in enumerate(load.requests)
        ]
        return {"requests": requests}

    def unloaded(round_idx: int) -> Mapping[str, Any]:
        return {"requests": list(_alone(words, load, round_idx))}

    room = sum(input_len + output_len for _, input_len, output_len in load.requests)
    yield Cell("arrivals", ALONE, "unloaded", room, 1, 0, unloaded)
    yield Cell("arrivals", f"arrivals, {len(load.requests)} requests", "arrivals", room, 1, 0, arguments)


def _alone(words: _Words, load: Load, round_idx: int) -> Iterator[tuple[float, list[int], int]]:
    """Yield some of the requests, spread over the lengths, to be served one at a time."""
    by_len = sorted(load.requests, key=lambda one: one[1])
    step = max(1, len(by_len) // 4)
    for index, (_, input_len, output_len) in enumerate(by_len[step // 2 :: step]):
        yield 0.0, words.prompt(input_len, "unloaded", round_idx, index), output_len


def _steps(prompts: list[list[int]], load: Load) -> dict[str, Any]:
    return {"prompts": prompts, "steps": load.num_steps, "warmups": _WARMUPS}
