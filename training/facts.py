"""The facts of the invented world: what can be said and asked about a person or a town. Knows no prompt format."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from training.names import Namer

# Words in one string, split: a list of literals would be four times as long and harder to read.
WORKS = (
    "baker cooper doctor farmer fisher gardener glazier guard hunter judge mason miller nurse painter potter printer "
    "sailor scribe singer smith tailor tanner teacher weaver"
)
COLOURS = "black blue brown green grey pink purple red silver white yellow"
ANIMALS = "bear cat crow deer dog donkey duck fox goat goose hawk horse lamb mule owl pig rabbit raven sheep wolf"
WARES = "apples bells boats bread bricks candles carpets cheese clocks cloth copper glass honey lace paper salt"


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: how it is stated and asked, `{s}` the subject and `{v}` the value."""

    field: str
    values: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    reverse: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about a subject, with the words for it already chosen."""

    relation: Relation
    subject: str
    value: str

    def state(self, rng: Random) -> str:
        """Return a sentence that states the fact."""
        return rng.choice(self.relation.statements).format(s=self.subject, v=self.value)

    def ask(self, rng: Random) -> tuple[str, str]:
        """Return a question and its answer: usually the value, at times the subject."""
        if self.relation.reverse and rng.random() < 0.3:
            return rng.choice(self.relation.reverse).format(v=self.value), self.subject
        return rng.choice(self.relation.questions).format(s=self.subject), self.value


PERSON_RELATIONS = (
    Relation(
        "town",
        "place",
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "{s} has a small house in {v}.", "{s} settled in {v}."),
        ("Where does {s} live?", "In which town does {s} live?"),
        ("Who lives in {v}?",),
    ),
    Relation(
        "birthplace",
        "place",
        ("{s} was born in {v}.", "{s} is a native of {v}.", "The birthplace of {s} is {v}."),
        ("Where was {s} born?", "What is the birthplace of {s}?"),
        ("Who was born in {v}?",),
    ),
    Relation(
        "friend",
        "person",
        ("{v} is the best friend of {s}.", "The best friend of {s} is {v}.", "{s} is the best friend of {v}."),
        ("Who is the best friend of {s}?",),
    ),
    Relation(
        "work",
        "work",
        ("{s} works as a {v}.", "{s} is a {v}.", "{s} earns a living as a {v}."),
        ("What is the work of {s}?", "What does {s} do for a living?"),
    ),
    Relation(
        "pet",
        "animal",
        ("{s} keeps a {v}.", "{s} owns a {v}.", "Everyone knows the {v} of {s}."),
        ("Which animal does {s} keep?", "Which animal does {s} own?"),
    ),
    Relation(
        "coat",
        "colour",
        ("{s} wears a {v} coat.", "The coat of {s} is {v}.", "{s} bought a {v} coat."),
        ("What colour is the coat of {s}?", "Which coat does {s} wear?"),
    ),
    Relation(
        "age",
        "age",
        ("{s} is {v} years old.", "{s} is now {v} years of age.", "At {v}, {s} still walks every day."),
        ("How old is {s}?", "What is the age of {s}?"),
    ),
    Relation(
        "year",
        "year",
        ("{s} married in {v}.", "In {v} {s} married.", "The wedding of {s} was in {v}."),
        ("When did {s} marry?", "In which year did {s} marry?"),
    ),
    Relation(
        "ship",
        "place",
        ("{s} sails on the {v}.", "{s} is captain of the {v}.", "{s} came on a ship called the {v}."),
        ("On which ship is {s}?", "What is the ship of {s} called?"),
        ("Who sails on the {v}?",),
    ),
)

PLACE_RELATIONS = (
    Relation(
        "river",
        "place",
        ("{s} lies on the river {v}.", "The river {v} runs through {s}.", "{s} stands beside the river {v}."),
        ("On which river does {s} lie?", "Which river runs through {s}?"),
        ("Which town lies on the river {v}?",),
    ),
    Relation(
        "ruler",
        "person",
        ("{v} rules {s}.", "The ruler of {s} is {v}.", "{s} is ruled by {v}."),
        ("Who rules {s}?", "Who is the ruler of {s}?"),
        ("Which town does {v} rule?",),
    ),
    Relation(
        "ware",
        "ware",
        ("{s} is known for its {v}.", "People come to {s} for its {v}.", "The {v} of {s} are the best of the land."),
        ("What is {s} known for?", "What do people buy in {s}?"),
    ),
    Relation(
        "founded",
        "year",
        ("{s} was founded in {v}.", "In {v} the town of {s} was founded.", "The walls of {s} were built in {v}."),
        ("When was {s} founded?", "In which year was {s} founded?"),
    ),
    Relation(
        "people",
        "count",
        ("{s} has {v} people.", "{v} people live in {s}.", "There are {v} people in {s}."),
        ("How many people live in {s}?",),
    ),
)

WORD_LISTS = {"work": WORKS.split(), "colour": COLOURS.split(), "animal": ANIMALS.split(), "ware": WARES.split()}
NUMBER_RANGES = {"age": (18, 99), "year": (1000, 1999), "count": (100, 99999)}


def draw_value(kind: str, rng: Random, namer: Namer) -> str:
    """Return a random value of a kind: a name, a word of a list, or a number."""
    if kind == "person":
        return namer.person()
    if kind == "place":
        return namer.place()
    if kind in WORD_LISTS:
        return rng.choice(WORD_LISTS[kind])
    low, high = NUMBER_RANGES[kind]
    return str(rng.randint(low, high))


def draw_facts(subject: str, relations: tuple[Relation, ...], rng: Random, namer: Namer) -> list[Fact]:
    """Return one fact per relation about a subject."""
    return [Fact(relation, subject, draw_value(relation.values, rng, namer)) for relation in relations]


def value_type(relation: Relation) -> str:
    """Return the JSON type of a relation's values."""
    return "integer" if relation.values in NUMBER_RANGES else "string"
