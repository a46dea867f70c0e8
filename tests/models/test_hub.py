"""A model of the hub: asked of the hub where it answers, taken from the cache where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.errors import ModelLoadFailed
from kea.models import describe_model
from kea.models.hub import locate


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of some/model in a cache of its own."""
    repo = tmp_path / "models--some--model"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 99}')
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return snapshot


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_a_copy_in_the_cache_stands_in_for_a_hub_that_does_not_answer(
    cached: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unplug(monkeypatch)
    assert locate("some/model") == str(cached)
    assert "the hub at http://127.0.0.1:9 does not answer" in caplog.text
    assert describe_model("some/model").name == "some/model"


def test_so_it_does_where_the_hub_must_not_be_asked(cached: Path) -> None:
    assert locate("some/model", "main") == str(cached)


def test_without_a_copy_the_reason_is_told(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadFailed, match="HF_HUB_OFFLINE forbids to ask the hub"):
        locate("other/model")
    unplug(monkeypatch)
    with pytest.raises(ModelLoadFailed, match=r"no copy of it in the cache, and the hub at .* does not answer"):
        locate("some/model", "another-branch")
