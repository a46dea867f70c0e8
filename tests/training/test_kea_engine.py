"""Evaluation through Kea's engine and through transformers is the same evaluation; what differs is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

import pytest
import torch

from tests.conftest import ROOT
from training.engines import Subject, TransformersEngine, load_subject
from training.evaluate import MAX_LOSS_DIFFERENCE, disagreements
from training.kea_engine import KeaEngine
from training.language import token_losses
from training.scoring import in_both_forms, same_shape, schema_of, score_enforced_json
from training.tasks import TASKS, World

EMBEDDED = ROOT / "src" / "kea" / "models" / "embedded"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject(EMBEDDED, sink_token=False)


@pytest.fixture(scope="module")
def kea(subject: Subject) -> Iterator[KeaEngine]:
    with KeaEngine(EMBEDDED, subject) as engine:
        yield engine


def test_both_engines_write_the_same(kea: KeaEngine, subject: Subject, world: World) -> None:
    tasks = [TASKS[name][0](world) for name in ("qa", "notes", "extract", "merge_notes") for _ in range(2)]
    prompts = in_both_forms(tasks)
    answers = kea.complete(prompts, limit=120)
    assert answers == TransformersEngine(subject).complete(prompts, limit=120)
    assert any(answers)
    assert kea.answers_exactly(prompts, answers) == [True] * len(prompts)
    assert kea.answers_exactly(prompts, [f"{answer}x" for answer in answers]) == [False] * len(prompts)


def test_both_engines_have_the_same_losses(kea: KeaEngine, subject: Subject) -> None:
    words = torch.randint(8, 4096, (2, 40), generator=torch.Generator().manual_seed(2))
    rows = torch.cat((torch.tensor([subject.start_ids] * 2), words), 1)
    ours, theirs = kea.token_losses(rows), token_losses(subject.model, rows)
    assert ours.shape == theirs.shape == (2, 40)
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_answers_are_valid_where_the_schema_is_enforced(kea: KeaEngine, world: World) -> None:
    scores = dict(score_enforced_json(world, 6, kea))
    assert scores["extract_schema_valid"].correct == 6
    assert scores["extract_schema_right"].correct <= 6


def test_a_schema_allows_its_own_answer_only_in_shape() -> None:
    answer = json.dumps({"name": "Tarn Osk", "age": 41})
    schema = json.loads(schema_of(answer))
    assert schema["required"] == ["name", "age"]
    assert [field["type"] for field in schema["properties"].values()] == ["string", "integer"]
    assert same_shape('{"age": 1, "name": "x"}', answer)
    assert not same_shape('{"age": "1", "name": "x"}', answer)


def test_engines_that_differ_are_told_apart() -> None:
    rng = Random(0)
    figures = {name: {"correct": rng.randint(0, 9)} for name in ("qa_4", "chain")}
    other = figures | {"chain": {"correct": figures["chain"]["correct"] + 1}}
    same = {"tasks": figures, "tasks_through_transformers": figures}
    assert disagreements(same) == []
    assert disagreements({}) == []
    (found,) = disagreements(same | {"tasks_through_transformers": other})
    assert found.startswith("chain: ")
    far = {"language": {"largest_loss_difference_nats": 2 * MAX_LOSS_DIFFERENCE}}
    assert len(disagreements(same | far)) == 1
