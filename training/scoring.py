"""Held-out samples of every task, how an answer is judged, and the accuracies. Knows no engine: it is given one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from training import prompts
from training.names import Namer
from training.tasks import TASKS, Task, World, note, qa_over, sighting_passage, sightings, stream_at
from training.tokenizer import ASSISTANT, END, USER


class Engine(Protocol):
    """What answers. Prompts may hold special tokens, but not the ones that begin a text."""

    def complete(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations up to a stop token, or to about `limit` characters, never fewer."""
        ...

    def answers_exactly(self, prompts: Sequence[str], wanted: Sequence[str]) -> list[bool]:
        """Tell for each prompt whether its greedy continuation is exactly what is wanted, then a stop token."""
        ...


class SchemaEngine(Protocol):
    """What answers in JSON only, as a schema says."""

    def complete_json(self, prompts: Sequence[str], schemas: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations of at most `limit` tokens that each match their JSON schema."""
        ...


MAX_JSON_TOKENS = 400  # five strings of the longest allowed length, one character per token, and their keys
MAX_STRING_CHARS = 40
NUM_HOPS = 4  # passages of a chain and of a map-reduce
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers of a suite, with the Wilson interval of the share."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.correct / self.total

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Return Wilson's score interval (Wilson, 1927)."""
        n, p = self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def suites() -> dict[str, Callable[[World], Task]]:
    """Return the generators of single-step suites by name."""
    single = {name: generate for name, (generate, _) in TASKS.items() if name not in {"story", "qa", "stream"}}
    questions = {f"qa_{count}": partial(qa_over, count=count, absent_share=0.0) for count in (1, 4, 8)}
    lines = {f"stream_{distance}": partial(stream_at, distance=distance) for distance in (1, 5, 10, 20, 40)}
    absent = partial(qa_over, count=4, absent_share=1.0)
    return {**questions, "qa_4_absent": absent, "stream_any": TASKS["stream"][0], **lines, **single}


def held_out_world(sentences: tuple[str, ...], stories: tuple[str, ...], seed: int) -> World:
    """Return a world of names, sentences and stories that training never sees."""
    rng = Random(seed)
    return World(rng, Namer(rng, held_out=True), sentences, stories)


def as_chat(prompt: str) -> str:
    """Return a prompt as the one user turn of a chat."""
    return f"{USER}{prompt}{END}{ASSISTANT}"


def in_both_forms(tasks: Sequence[Task]) -> list[str]:
    """Return the texts of prompts: by turns plain, with the space before the answer, and as a chat."""
    return [as_chat(task.prompt) if i % 2 else f"{task.prompt} " for i, task in enumerate(tasks)]


def longest(texts: Iterable[str]) -> int:
    """Return the number of characters of the longest text: a longer answer is wrong anyhow."""
    return max(map(len, texts))


def score_suite(generate: Callable[[World], Task], world: World, count: int, engine: Engine) -> Accuracy:
    """Return the exact-match accuracy over `count` samples."""
    tasks = [generate(world) for _ in range(count)]
    return Accuracy(sum(engine.answers_exactly(in_both_forms(tasks), [task.answer for task in tasks])), count)


def score_valid_json(world: World, count: int, engine: Engine) -> Accuracy:
    """Return how many extractions are JSON with the keys and types asked for, right or wrong."""
    tasks = [TASKS["extract"][0](world) for _ in range(count)]
    answers = engine.complete(in_both_forms(tasks), longest(task.answer for task in tasks))
    return Accuracy(sum(same_shape(answer, task.answer) for answer, task in zip(answers, tasks, strict=True)), count)


def score_enforced_json(world: World, count: int, engine: SchemaEngine) -> Iterator[tuple[str, Accuracy]]:
    """Yield how many extractions are valid, and how many are right, where the engine enforces the schema."""
    tasks = [TASKS["extract"][0](world) for _ in range(count)]
    wanted = [task.answer for task in tasks]
    answers = engine.complete_json(in_both_forms(tasks), [schema_of(answer) for answer in wanted], MAX_JSON_TOKENS)
    pairs = list(zip(answers, wanted, strict=True))
    yield "extract_schema_valid", Accuracy(sum(same_shape(*pair) for pair in pairs), count)
    right = sum(same_shape(answer, own) and json.loads(answer) == json.loads(own) for answer, own in pairs)
    yield "extract_schema_right", Accuracy(right, count)


def schema_of(answer: str) -> str:
    """Return the JSON schema of an answer: its fields in their order, nothing else, and no value without end."""
    text = {"type": "string", "maxLength": MAX_STRING_CHARS}
    number = {"type": "integer", "minimum": 0, "maximum": 99_999}
    fields = {name: number if isinstance(value, int) else text for name, value in json.loads(answer).items()}
    return json.dumps({"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False})


def same_shape(text: str, wanted: str) -> bool:
    """Tell whether a text is a JSON object with the keys and the value types of another."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    shape = {name: type(item) for name, item in json.loads(wanted).items()}
    return isinstance(value, dict) and {name: type(item) for name, item in value.items()} == shape


@dataclass(frozen=True, slots=True)
class Journey:
    """Passages that each tell where one person is, and the notes that should come out of all of them."""

    passages: tuple[str, ...]
    notes: str


def draw_journey(world: World) -> Journey:
    """Return a random journey over NUM_HOPS passages."""
    pairs = sightings(world, NUM_HOPS)
    passages = tuple(sighting_passage(world, *pair) for pair in pairs)
    return Journey(passages, " ".join(note(*pair) for pair in pairs))


def score_chain(world: World, count: int, engine: Engine) -> Accuracy:
    """Return how often notes refined passage by passage, from the model's own notes, end up exact."""
    journeys = [draw_journey(world) for _ in range(count)]
    limit = longest(journey.notes for journey in journeys)
    notes = engine.complete([f"{prompts.notes_prompt(journey.passages[0])} " for journey in journeys], limit)
    for hop in range(1, NUM_HOPS):
        steps = zip(notes, journeys, strict=True)
        texts = [f"{prompts.refine_notes_prompt(own, journey.passages[hop])} " for own, journey in steps]
        notes = engine.complete(texts, limit)
    return count_right(notes, journeys)


def score_map_reduce(world: World, count: int, engine: Engine) -> Accuracy:
    """Return how often notes made of each passage alone, then merged, are exact."""
    journeys = [draw_journey(world) for _ in range(count)]
    limit = longest(journey.notes for journey in journeys)
    passages = [passage for journey in journeys for passage in journey.passages]
    mapped = engine.complete([f"{prompts.notes_prompt(passage)} " for passage in passages], limit)
    groups = [mapped[i : i + NUM_HOPS] for i in range(0, len(mapped), NUM_HOPS)]
    return count_right(engine.complete([f"{prompts.merge_notes_prompt(group)} " for group in groups], limit), journeys)


def count_right(notes: Sequence[str], journeys: Sequence[Journey]) -> Accuracy:
    """Return how many notes are exactly those of their journey."""
    right = sum(own == journey.notes for own, journey in zip(notes, journeys, strict=True))
    return Accuracy(right, len(journeys))


def score_all(world: World, count: int, engine: Engine) -> Iterator[tuple[str, Accuracy]]:
    """Yield the accuracy of every suite, as soon as it is known."""
    for name, generate in suites().items():
        yield name, score_suite(generate, world, count, engine)
    yield "extract_valid", score_valid_json(world, count, engine)
    yield "chain", score_chain(world, count, engine)
    yield "map_reduce", score_map_reduce(world, count, engine)
