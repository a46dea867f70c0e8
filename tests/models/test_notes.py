"""Notes: a load with one gives what a load without one gives, and what has changed meanwhile is never believed."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kea.kernels.shelf import Shelf
from kea.models import Notes, Tokenizer, load_model, loading
from kea.models.lean import LeanDecoder
from kea.models.noted_config import NotedValues, read_noting
from kea.models.noted_tokenizer import NotedTokenizer
from kea.models.source import read_config
from tests.models.families import build_model, save_model
from tests.models.lean.test_lean import COVERED, VARIANTS, random_text
from tests.models.paging import run_paged
from tests.models.tokenizers_zoo import ALL, by_name

FamilyPath = Callable[[str], Path]

TEXT = random_text(40)
MESSAGES = [{"role": "user", "content": "Hello </s> there"}]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(Shelf(tmp_path / "notes", 1 << 24))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the directories of which transformers read the weights."""
    found: list[str] = []
    original = loading._read_weights

    def read(order: Any, config: Any) -> Any:
        found.append(order.source)
        return original(order, config)

    monkeypatch.setattr(loading, "_read_weights", read)
    return found


def logits_of(path: Path, notes: Notes | None, **options: Any) -> torch.Tensor:
    decoder = load_model(path, notes=notes, **options)
    assert isinstance(decoder, LeanDecoder)
    return run_paged(decoder, [TEXT], max_chunk=100)[0]


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))


def check_twice(path: Path, notes: Notes, reads: list[str], **options: Any) -> None:
    """Load twice, the second time by the note: both give the same model, to the last bit."""
    first, second = (load_model(path, notes=notes, **options) for _ in range(2))
    assert len(reads) == 1
    assert second.facts == first.facts == load_model(path, **options).facts
    logits = [run_paged(decoder, [TEXT], max_chunk=100)[0] for decoder in (first, second)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", COVERED)
def test_a_load_by_a_note_gives_the_same_model_in_every_covered_family(
    name: str, family_path: FamilyPath, notes: Notes, reads: list[str]
) -> None:
    check_twice(family_path(name), notes, reads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_load_by_a_note_gives_the_same_model_under_every_option(
    variant: str, tmp_path: Path, notes: Notes, reads: list[str]
) -> None:
    name, changes = VARIANTS[variant]
    check_twice(save_model(name, tmp_path, **changes), notes, reads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bits_is_packed_as_it_lies(
    dtype: torch.dtype, tmp_path: Path, notes: Notes, reads: list[str]
) -> None:
    build_model("qwen2").to(dtype).save_pretrained(tmp_path / "model")
    check_twice(tmp_path / "model", notes, reads)


@pytest.mark.parametrize("options", [{"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "float16"}, {"max_len": 100}])
def test_the_settings_of_a_load_hold_behind_a_note(
    options: dict[str, Any], family_path: FamilyPath, notes: Notes, reads: list[str]
) -> None:
    check_twice(family_path("llama"), notes, reads, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rounded_weights_are_proven_by_a_note_of_their_own(
    dtype: torch.dtype, tmp_path: Path, notes: Notes, reads: list[str]
) -> None:
    path = tmp_path / "model"
    build_model("llama").to(dtype).save_pretrained(path)
    logits = [logits_of(path, notes, quantize=quantize) for quantize in (None, "int8", None, "int8")]
    assert len(reads) == 2
    assert torch.equal(logits[0], logits[2])
    assert (logits[1] - logits[3]).abs().max() < 1e-4
    assert not torch.equal(logits[0], logits[1])


def test_other_weights_under_the_same_config_are_proven_anew(
    tmp_path: Path, notes: Notes, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = save_model("llama", tmp_path)
    before = logits_of(path, notes)
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] += 0.1
    model.save_pretrained(path)
    with caplog.at_level(logging.INFO, "kea"):
        after = logits_of(path, notes)
    assert len(reads) == 2
    assert "is not so any more" in caplog.text
    assert torch.equal(after, logits_of(path, None))
    assert not torch.equal(after, before)
    assert torch.equal(after, logits_of(path, notes))
    assert len(reads) == 3  # the load without notes was the third


def test_weights_that_were_trained_a_little_further_are_proven_anew(
    tmp_path: Path, notes: Notes, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = save_model("llama", tmp_path)
    before = logits_of(path, notes)
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-6
    model.save_pretrained(path)
    with caplog.at_level(logging.INFO, "kea"):
        after = logits_of(path, notes)
    assert (before - after).abs().max() < 1e-4
    assert len(reads) == 2
    assert "1 weights have changed, such as model.layers.1.mlp.down_proj.weight" in caplog.text


def test_checkpoints_of_one_shape_keep_their_own_notes(tmp_path: Path, notes: Notes, reads: list[str]) -> None:
    paths = [save_model("llama", tmp_path / name) for name in ("one", "other")]
    model = build_model("llama")
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(paths[1])
    logits = [logits_of(path, notes) for path in (*paths, *paths)]
    assert len(reads) == 2
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert not torch.equal(logits[0], logits[1])


def test_what_links_point_to_is_what_counts(tmp_path: Path, notes: Notes, reads: list[str]) -> None:
    """As the snapshots of the hub's cache are: links to files that are named by their contents."""
    blobs, snapshot = save_model("llama", tmp_path), tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    check_twice(snapshot, notes, reads)
    edit(blobs / "config.json", rms_norm_eps=0.1)
    after = logits_of(snapshot, notes)
    assert len(reads) == 3  # the load without notes was the second
    assert torch.equal(after, logits_of(blobs, None))


def test_other_ends_of_output_in_the_generation_config_are_taken(tmp_path: Path, notes: Notes) -> None:
    path = save_model("llama", tmp_path)
    for eos in (5, [6, 7]):
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        for _ in range(2):
            assert load_model(path, notes=notes).facts.eos_token_ids == ((5,) if eos == 5 else (6, 7))


def test_a_config_that_is_edited_while_it_is_read_leaves_no_note(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("llama", tmp_path)

    def read_and_edit(source: str, revision: str | None) -> Any:
        config = read_config(source, revision)
        edit(path / "config.json", rms_norm_eps=0.25)
        return config

    with monkeypatch.context() as patched:
        patched.setattr("kea.models.noted_config.read_config", read_and_edit)
        read_noting(str(path), None, notes.try_of(str(path)))
    for _ in range(2):
        assert read_noting(str(path), None, notes.try_of(str(path))).rms_norm_eps == 0.25


def test_a_checkpoint_that_is_edited_while_it_is_loaded_leaves_no_note(
    tmp_path: Path, notes: Notes, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("llama", tmp_path)
    collect = loading._read_weights

    def read_and_edit(order: Any, config: Any) -> Any:
        model = collect(order, config)
        edit(path / "config.json", rms_norm_eps=0.25)
        return model

    with monkeypatch.context() as patched:
        patched.setattr(loading, "_read_weights", read_and_edit)
        load_model(path, notes=notes)
    after = logits_of(path, notes)
    assert len(reads) == 2
    assert torch.equal(after, logits_of(path, None))


def test_a_file_that_cannot_be_read_keeps_notes_away_and_not_the_model(
    tmp_path: Path, notes: Notes, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("llama", tmp_path)
    (path / "private.txt").write_text("of no use to a load")
    read_bytes = Path.read_bytes

    def read(file: Path) -> bytes:
        if file.name == "private.txt":
            raise PermissionError(13, "Permission denied", str(file))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", read)
    for _ in range(2):
        load_model(path, notes=notes)
    assert len(reads) == 2
    assert not (tmp_path / "notes").exists()


def test_other_versions_of_the_libraries_find_no_note(
    family_path: FamilyPath, notes: Notes, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = family_path("llama")
    logits_of(path, notes)
    monkeypatch.setattr("kea.models.notes._versions", lambda: ("6.0", "1.0", "3.0"))
    logits_of(path, notes)
    assert len(reads) == 2


def test_weights_of_another_shape_are_not_put_where_the_noted_ones_were(
    tmp_path: Path, notes: Notes, reads: list[str]
) -> None:
    path, wide = save_model("llama", tmp_path), save_model("llama", tmp_path / "wide", intermediate_size=64)
    logits_of(path, notes)
    shutil.copy(wide / "model.safetensors", path / "model.safetensors")
    with pytest.raises(Exception, match=r"lacks weights|mismatched"):
        load_model(path, notes=notes)
    assert len(reads) == 2


def test_another_config_over_the_same_weights_is_proven_anew(tmp_path: Path, notes: Notes, reads: list[str]) -> None:
    path = save_model("llama", tmp_path)
    before = logits_of(path, notes)
    edit(path / "config.json", rms_norm_eps=0.1)
    after = logits_of(path, notes)
    assert len(reads) == 2
    assert not torch.equal(before, after)


def test_a_damaged_note_is_told_and_made_anew(
    tmp_path: Path, family_path: FamilyPath, notes: Notes, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = family_path("qwen3")
    before = logits_of(path, notes)
    for file in (tmp_path / "notes").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(logits_of(path, notes), before)
    assert "is damaged and not used" in caplog.text
    assert torch.equal(logits_of(path, notes), before)
    assert len(reads) == 2


def test_a_model_that_is_not_ours_to_run_leaves_no_note(family_path: FamilyPath, notes: Notes, tmp_path: Path) -> None:
    load_model(family_path("gpt2"), notes=notes)
    assert not (tmp_path / "notes").exists()


def test_a_noted_config_has_the_attributes_of_the_config_and_no_others(family_path: FamilyPath, notes: Notes) -> None:
    path = str(family_path("gemma2"))
    config, noted = (read_noting(path, None, notes.try_of(path)) for _ in range(2))
    assert isinstance(noted, NotedValues)
    for name in ("model_type", "hidden_size", "layer_types", "final_logit_softcapping", "rope_parameters"):
        assert getattr(noted, name) == getattr(config, name)
    with pytest.raises(AttributeError, match="no_such_option"):
        noted.no_such_option  # noqa: B018 - it raises


@pytest.mark.parametrize("name", ALL)
def test_a_noted_tokenizer_gives_the_same_tokens_and_chats(name: str, tmp_path: Path, notes: Notes) -> None:
    by_name(name).chat._tokenizer.save_pretrained(tmp_path / "model")
    first, second = (Tokenizer.load(tmp_path / "model", notes=notes) for _ in range(2))
    assert isinstance(second.chat._tokenizer, NotedTokenizer)
    assert not isinstance(first.chat._tokenizer, NotedTokenizer)
    text = "Once upon a time </s> there was a naïve cat. 你好 🙂 12"
    for special in (True, False):
        ids = first.encode(text, special=special)
        assert second.encode(text, special=special) == ids
        assert second.decode(ids) == first.decode(ids)
        assert second.encode(text, allow_special=False) == first.encode(text, allow_special=False)
    assert second.eos_token_ids == first.eos_token_ids
    assert second.bos_token_id == first.bos_token_id
    assert second.special_token_ids == first.special_token_ids
    assert second.has_chat_template == first.has_chat_template
    if first.has_chat_template:
        assert second.encode_chat(MESSAGES) == first.encode_chat(MESSAGES)


def test_another_tokenizer_in_the_same_directory_is_read_anew(tmp_path: Path, notes: Notes) -> None:
    for name in ALL[:2]:
        by_name(name).chat._tokenizer.save_pretrained(tmp_path / "model")
        for _ in range(2):
            found = Tokenizer.load(tmp_path / "model", notes=notes)
            assert found.encode("Once upon a time") == by_name(name).encode("Once upon a time")


def test_a_load_by_notes_imports_no_transformers(family_path: FamilyPath, notes: Notes, tmp_path: Path) -> None:
    path = family_path("llama")
    load_model(path, notes=notes)
    code = (
        "import sys; from pathlib import Path; from kea.kernels.shelf import Shelf; "
        "from kea.models import Notes, load_model; "
        f"load_model({str(path)!r}, notes=Notes(Shelf(Path({str(tmp_path / 'notes')!r}), 1 << 24))); "
        "print('transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
