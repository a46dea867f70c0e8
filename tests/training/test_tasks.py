"""Every answer follows from its prompt alone, and the two sides of the names never meet."""

from __future__ import annotations

import json
import re
from functools import partial
from random import Random

import pytest

from training import prompts
from training.names import Namer, is_held_out
from training.tasks import TASKS, World, qa_over, stream_at

NUM_SAMPLES = 100
NOTE = re.compile(r"([A-Z][a-z]+(?: [A-Z][a-z]+)?) in ([A-Z][a-z]+)\.")


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_samples(world: World, name: str) -> None:
    def draw() -> list[object]:
        rng = Random(5)
        fresh = World(rng, Namer(rng), world.sentences, world.stories)
        return [TASKS[name][0](fresh) for _ in range(5)]

    assert draw() == draw()


def test_a_present_answer_stands_in_a_passage(world: World) -> None:
    for _ in range(NUM_SAMPLES):
        task = qa_over(world, count=4, absent_share=0.0, num_follow_ups=8)
        asked = [task.prompt.rsplit("\n", 2)[1], *(prompt.split("\n")[0] for prompt, _ in task.follow_ups)]
        assert len(set(asked)) == len(asked)
        for answer in (task.answer, *(answer for _, answer in task.follow_ups)):
            assert answer in task.prompt.rsplit("\nQuestion:", 1)[0]


def test_an_absent_answer_is_said_to_be_absent(world: World) -> None:
    tasks = [qa_over(world, count=4, absent_share=1.0) for _ in range(NUM_SAMPLES)]
    assert {task.answer for task in tasks} == {prompts.ABSENT}


@pytest.mark.parametrize("distance", [1, 7, 40])
def test_a_streamed_value_is_that_of_the_line_asked_for(world: World, distance: int) -> None:
    for _ in range(NUM_SAMPLES):
        task = stream_at(world, distance)
        *lines, question, _ = task.prompt.split("\n")
        asked = re.search(r"line (\d+)\?", question)
        assert asked is not None
        assert lines[-distance] == prompts.stream_line(int(asked[1]), int(task.answer.strip("<>")))


def test_summaries_are_sentences_of_the_prompt_in_order(world: World) -> None:
    for _ in range(NUM_SAMPLES):
        lead = TASKS["summarise"][0](world)
        assert lead.prompt.startswith(f"Passage: {lead.answer}")
        merged = TASKS["merge_summaries"][0](world)
        given = re.findall(r"^Summary \d+: (.*)$", merged.prompt, re.MULTILINE)
        assert merged.answer == " ".join(given)
        refined = TASKS["refine_summary"][0](world)
        summary, passage = re.findall(r": (.*)$", refined.prompt, re.MULTILINE)
        assert refined.answer.startswith(summary)
        assert passage.startswith(refined.answer[len(summary) + 1 :])


@pytest.mark.parametrize("name", ["notes", "refine_notes", "merge_notes"])
def test_notes_name_persons_and_places_of_the_prompt(world: World, name: str) -> None:
    for _ in range(NUM_SAMPLES):
        task = TASKS[name][0](world)
        pairs = NOTE.findall(task.answer)
        assert " ".join(f"{who} in {where}." for who, where in pairs) == task.answer or task.answer == prompts.NOBODY
        assert all(who in task.prompt and where in task.prompt for who, where in pairs)


def test_extracted_json_has_the_fields_and_types_of_the_schema(world: World) -> None:
    types = {"string": str, "integer": int}
    for _ in range(NUM_SAMPLES):
        task = TASKS["extract"][0](world)
        schema = re.findall(r'"(\w+)": (string|integer)', task.prompt)
        record = json.loads(task.answer)
        assert [(name, types[kind]) for name, kind in schema] == [(key, type(item)) for key, item in record.items()]
        assert all(str(item) in task.prompt for item in record.values())


def test_the_right_choice_is_the_only_one_in_the_text(world: World) -> None:
    for _ in range(NUM_SAMPLES):
        task = TASKS["choice"][0](world)
        text, _, choices, _ = task.prompt.split("\n")
        words = re.findall(r"\w+", text)
        found = [choice for choice in choices.removeprefix("Choices: ").split(", ") if choice.split()[0] in words]
        assert task.answer in found


def test_training_names_and_held_out_names_share_no_word() -> None:
    for held_out, make in ((side, kind) for side in (True, False) for kind in ("persons", "places")):
        namer = Namer(Random(11), held_out)
        words = " ".join(partial(getattr(namer, make), 50)()).split()
        assert {is_held_out(word) for word in words} == {held_out}
