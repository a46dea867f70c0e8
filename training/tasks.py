"""Random samples of every task, each with its exact answer. Knows prompt formats and facts, not tokens or rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from training import prompts
from training.facts import PERSON_RELATIONS, PLACE_RELATIONS, Fact, Relation, draw_facts, draw_value, value_type
from training.names import Namer

ABSENT_SHARE = 0.25  # of the questions over passages that no passage answers


@dataclass(frozen=True, slots=True)
class Task:
    """One question to the model and its only right answer; then, at times, further questions over the same text."""

    name: str
    prompt: str
    answer: str
    follow_ups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """What samples are drawn from: one random stream, one side of the names and of the sentences.

    `size` in 0..1 is the difficulty: how many passages, lines and filler sentences a sample may have.
    """

    rng: Random
    namer: Namer
    sentences: tuple[str, ...]
    stories: tuple[str, ...]
    size: float = 1.0

    def at_most(self, full: int, least: int = 1) -> int:
        """Return a random count from `least` to what the difficulty allows of `full`."""
        return self.rng.randint(least, max(least, round(full * self.size)))

    def filler(self, most: int) -> list[str]:
        """Return up to `most` sentences that have nothing to do with the task."""
        return self.rng.choices(self.sentences, k=self.rng.randint(0, most))


def shuffled_text(parts: list[str], rng: Random) -> str:
    """Return sentences in random order as one line of text."""
    rng.shuffle(parts)
    return " ".join(parts)


def some_facts(world: World, subject: str, is_person: bool) -> list[Fact]:
    """Return one to three facts about a subject, of different kinds."""
    relations = PERSON_RELATIONS if is_person else PLACE_RELATIONS
    chosen = tuple(world.rng.sample(relations, world.rng.randint(1, 3)))
    return draw_facts(subject, chosen, world.rng, world.namer)


def passages_with_facts(world: World, count: int) -> tuple[list[str], list[Fact]]:
    """Return passages, one subject each, and all facts they state."""
    kinds = [world.rng.random() < 0.75 for _ in range(count)]
    persons, places = world.namer.persons(count), world.namer.places(count)
    passages: list[str] = []
    facts: list[Fact] = []
    for is_person, person, place in zip(kinds, persons, places, strict=True):
        own = some_facts(world, person if is_person else place, is_person)
        parts = [fact.state(world.rng) for fact in own]
        passages.append(shuffled_text(parts + world.filler(round(2 * world.size)), world.rng))
        facts.extend(own)
    return passages, facts


def missing_fact(world: World, facts: list[Fact]) -> Fact:
    """Return a fact that no passage states: of an unknown subject, or of a kind not told about a known one."""
    known = world.rng.choice(facts)
    relations = PERSON_RELATIONS if known.relation in PERSON_RELATIONS else PLACE_RELATIONS
    if world.rng.random() < 0.5:
        subject = world.namer.person() if relations is PERSON_RELATIONS else world.namer.place()
        return Fact(known.relation, subject, prompts.ABSENT)
    told = {fact.relation.field for fact in facts if fact.subject == known.subject}
    relation = world.rng.choice([relation for relation in relations if relation.field not in told])
    return Fact(relation, known.subject, prompts.ABSENT)


def absent_question(world: World, facts: list[Fact]) -> tuple[str, str]:
    """Return a question that no passage answers."""
    fact = missing_fact(world, facts)
    return world.rng.choice(fact.relation.questions).format(s=fact.subject), prompts.ABSENT


def draw_questions(world: World, facts: list[Fact], count: int, absent_share: float) -> Iterator[tuple[str, str]]:
    """Yield up to `count` questions with their answers; no fact is asked for twice, and a share has no answer."""
    left = list(facts)
    for _ in range(count):
        if world.rng.random() < absent_share:
            yield absent_question(world, facts)
        elif left:
            fact = world.rng.choice(left)
            left.remove(fact)
            yield fact.ask(world.rng)


def qa_over(world: World, count: int, absent_share: float = ABSENT_SHARE, num_follow_ups: int = 0) -> Task:
    """Question answering over exactly `count` passages."""
    passages, facts = passages_with_facts(world, count)
    (question, answer), *more = draw_questions(world, facts, 1 + num_follow_ups, absent_share)
    follow_ups = tuple((prompts.question_prompt(question), answer) for question, answer in more)
    return Task("qa", prompts.qa_prompt(passages, question), answer, follow_ups)


def qa(world: World) -> Task:
    """Question answering over one to eight passages, most of whose facts are asked for one after the other."""
    count = world.at_most(8)
    return qa_over(world, count, num_follow_ups=world.rng.randint(0, 2 * count))


FARTHEST_LINE = 40  # a question is about one of so many last lines
MOST_LINES = 42  # with their question and answer, they fit into 1,024 tokens whatever their numbers are
# Streams begin at a line below one of these: mostly at the start, at times deep in a long stream.
LAST_FIRST_LINES = (1, 1, 1, 50, 50, 500, 5000, 120000)


def stream_lines(world: World, count: int) -> list[tuple[int, int]]:
    """Return consecutive line numbers with random values."""
    first = world.rng.randint(1, world.rng.choice(LAST_FIRST_LINES))
    digits = world.rng.choice((2, 3, 4, 5))
    return [(first + i, world.rng.randint(1, 10**digits - 1)) for i in range(count)]


def stream_at(world: World, distance: int, num_follow_ups: int = 0) -> Task:
    """StreamEval: ask for the line `distance` lines back (1 is the last line before the question)."""
    lines = stream_lines(world, distance + world.at_most(min(8, MOST_LINES - distance), 0))
    line, value = lines[-distance]
    text = "\n".join(prompts.stream_line(*pair) for pair in lines)
    more = world.rng.choices(lines[-FARTHEST_LINE:], k=num_follow_ups)
    follow_ups = tuple((prompts.stream_question(line), f"<{value}>") for line, value in more)
    return Task("stream", f"{text}\n{prompts.stream_question(line)}", f"<{value}>", follow_ups)


def stream(world: World) -> Task:
    """StreamEval with a question about one of the last forty lines, then about more of them."""
    return stream_at(world, world.at_most(FARTHEST_LINE), num_follow_ups=world.rng.randint(0, 8))


def summarise(world: World) -> Task:
    """Summarise a passage: its lead sentence."""
    lead, passage = lead_passage(world)
    return Task("summarise", prompts.summarise_prompt(passage), lead)


def lead_passage(world: World) -> tuple[str, str]:
    """Return a passage and its lead sentence."""
    sentences = world.rng.sample(world.sentences, world.at_most(6, 2))
    if world.rng.random() < 0.3:
        sentences[0] = world.rng.choice(some_facts(world, world.namer.person(), True)).state(world.rng)
    return sentences[0], " ".join(sentences)


def refine_summary(world: World) -> Task:
    """Refine a summary with a new passage: its lead sentence comes after the summary."""
    lead, passage = lead_passage(world)
    summary = " ".join(world.rng.sample(world.sentences, world.at_most(4)))
    return Task("refine_summary", prompts.refine_summary_prompt(summary, passage), f"{summary} {lead}")


def merge_summaries(world: World) -> Task:
    """Merge several summaries in order."""
    summaries = world.rng.sample(world.sentences, world.at_most(5, 2))
    return Task("merge_summaries", prompts.merge_summaries_prompt(summaries), " ".join(summaries))


SIGHTINGS = (
    "{who} is in {where}.",
    "{who} was seen in {where}.",
    "That day {who} arrived in {where}.",
    "{who} waited in {where} until evening.",
    "In {where} there was {who}.",
)


def sighting_passage(world: World, who: str, where: str) -> str:
    """Return a passage that tells where someone is, among filler."""
    fact = world.rng.choice(SIGHTINGS).format(who=who, where=where)
    return shuffled_text([fact, *world.filler(round(4 * world.size))], world.rng)


def sightings(world: World, count: int) -> list[tuple[str, str]]:
    """Return different persons and where each of them is."""
    return list(zip(world.namer.persons(count), world.namer.places(count), strict=True))


def note(who: str, where: str) -> str:
    """Return the note of one sighting."""
    return f"{who} in {where}."


def notes(world: World) -> Task:
    """Map step: who is where in one passage."""
    if world.rng.random() < 0.15:
        passage = " ".join(world.rng.sample(world.sentences, world.at_most(4)))
        return Task("notes", prompts.notes_prompt(passage), prompts.NOBODY)
    pairs = sightings(world, world.rng.choice((1, 1, 2)))
    passage = " ".join(sighting_passage(world, *pair) for pair in pairs)
    return Task("notes", prompts.notes_prompt(passage), " ".join(note(*pair) for pair in pairs))


def refine_notes(world: World) -> Task:
    """Chain step: notes so far and a new passage."""
    *known, new = sightings(world, world.at_most(6, 2))
    so_far = " ".join(note(*pair) for pair in known)
    passage = sighting_passage(world, *new)
    return Task("refine_notes", prompts.refine_notes_prompt(so_far, passage), f"{so_far} {note(*new)}")


def merge_notes(world: World) -> Task:
    """Reduce step: several notes in one line; empty ones are left out."""
    parts = [note(*pair) for pair in sightings(world, world.at_most(6, 2))]
    given = [prompts.NOBODY if world.rng.random() < 0.1 else part for part in parts]
    merged = " ".join(part for part in given if part != prompts.NOBODY)
    return Task("merge_notes", prompts.merge_notes_prompt(given), merged or prompts.NOBODY)


def extract(world: World) -> Task:
    """Extract fields of one person into JSON, in the order of the schema."""
    count = world.rng.randint(1, 4)
    subject = world.namer.person()
    relations = world.rng.sample(PERSON_RELATIONS, min(len(PERSON_RELATIONS), count + world.rng.randint(0, 2)))
    facts = draw_facts(subject, tuple(relations), world.rng, world.namer)
    text = shuffled_text([fact.state(world.rng) for fact in facts] + world.filler(round(2 * world.size)), world.rng)
    schema = {fact.relation.field: value_type(fact.relation) for fact in facts[:count]}
    record = {fact.relation.field: json_value(fact) for fact in facts[:count]}
    if world.rng.random() < 0.7:
        schema, record = {"name": "string", **schema}, {"name": subject, **record}
    return Task("extract", prompts.extract_prompt(text, schema), json.dumps(record))


def json_value(fact: Fact) -> str | int:
    """Return the value of a fact as JSON holds it."""
    return int(fact.value) if value_type(fact.relation) == "integer" else fact.value


def choice(world: World) -> Task:
    """Pick the one of two to five choices that the text gives as the answer."""
    relation = world.rng.choice((*PERSON_RELATIONS, *PLACE_RELATIONS))
    fact = draw_facts(subject_for(world, relation), (relation,), world.rng, world.namer)[0]
    text = shuffled_text([fact.state(world.rng), *world.filler(round(3 * world.size))], world.rng)
    choices, count = {fact.value}, world.at_most(5, 2)
    while len(choices) < count:
        choices.add(draw_value(relation.values, world.rng, world.namer))
    question = world.rng.choice(relation.questions).format(s=fact.subject)
    ordered = sorted(choices)
    world.rng.shuffle(ordered)
    return Task("choice", prompts.choice_prompt(text, question, ordered), fact.value)


def subject_for(world: World, relation: Relation) -> str:
    """Return a name that a relation can be about."""
    return world.namer.person() if relation in PERSON_RELATIONS else world.namer.place()


def story(world: World) -> Task:
    """Continue a story from the end of one of its first sentences."""
    text = world.rng.choice(world.stories)
    stops = [i + 1 for i, char in enumerate(text) if char == "." and i > 40]
    at = world.rng.choice(stops[: max(1, len(stops) // 2)] or [len(text) // 2])
    return Task("story", prompts.story_prompt(text[:at]), text[at:].strip())


TASKS: dict[str, tuple[Callable[[World], Task], float]] = {
    "qa": (qa, 5.0),
    "stream": (stream, 1.2),
    "summarise": (summarise, 0.6),
    "refine_summary": (refine_summary, 0.9),
    "merge_summaries": (merge_summaries, 0.9),
    "notes": (notes, 4.0),
    "refine_notes": (refine_notes, 5.0),
    "merge_notes": (merge_notes, 3.0),
    "extract": (extract, 3.0),
    "choice": (choice, 0.6),
    "story": (story, 0.2),
}


# Tasks whose answers are long copies: most of the signal from which copying emerges.
COPY_TASKS = frozenset({"summarise", "refine_summary", "merge_summaries", "notes", "refine_notes", "merge_notes"})
COPY_FACTOR = 1.5


def draw_task(world: World) -> Task:
    """Return a random sample of a random task; copying comes first, while samples are small."""
    names = list(TASKS)
    factor = COPY_FACTOR if world.size < 0.5 else 1.0
    weights = [TASKS[name][1] * (factor if name in COPY_TASKS else 1.0) for name in names]
    return TASKS[world.rng.choices(names, weights)[0]][0](world)
