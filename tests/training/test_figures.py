"""The figures that are shipped: the card says what the stored evaluation says, and the weights are what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.card import count_parameters, render_card
from training.config import Recipe
from training.export import MAX_BYTES
from training.plot import read_log
from training.scoring import Accuracy

LOG = ROOT / "training" / "log"
EMBEDDED = ROOT / "src" / "kea" / "models" / "embedded"


def read_json(path: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return value


def test_the_card_is_written_from_the_stored_figures() -> None:
    evaluation, progress = read_json(LOG / "evaluation.json"), json.loads((LOG / "progress.json").read_text())
    card = render_card(evaluation, progress, Recipe().model, count_parameters(EMBEDDED))
    assert (EMBEDDED / "README.md").read_text(encoding="utf-8") == card
    assert "{{" not in card


def test_the_weights_fit_into_the_repository() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size < MAX_BYTES


def test_the_log_reaches_the_shipped_step() -> None:
    entries, progress = read_log(LOG / "plain.jsonl"), json.loads((LOG / "progress.json").read_text())
    assert 0 <= progress["step"] - entries[-1]["step"] < 25
    assert [entry["step"] for entry in entries] == sorted({entry["step"] for entry in entries})


def test_the_embedded_model_answers_a_question_it_was_trained_for() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(EMBEDDED), AutoTokenizer.from_pretrained(EMBEDDED)
    prompt = "Passage 1: Tarn Osk lives in Velford.\nQuestion: Where does Tarn Osk live?\nAnswer: "
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True) == "Velford"


@pytest.mark.parametrize(("correct", "total", "low", "high"), [(90, 100, 0.8256, 0.9448), (0, 20, 0.0, 0.1611)])
def test_wilson_intervals(correct: int, total: int, low: float, high: float) -> None:
    assert Accuracy(correct, total).interval() == pytest.approx((low, high), abs=1e-4)
