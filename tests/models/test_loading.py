"""Loading: what is refused and why, what errors say, what a loaded model knows of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kea.attention import Run, SequencePlan, StepPlan
from kea.errors import ContextLengthExceeded, InvalidRequest, ModelLoadFailed, Unsupported
from kea.models import LoadProgress, StepInput, describe_model, load_model, read_default_sampling
from kea.models.probe import discover_layers
from kea.types import Sampling
from tests.models.families import COMMON, FAMILIES, MAX_LEN, build_model, save_model
from tests.models.paging import run_paged

FamilyPath = Callable[[str], Path]

REFUSED = {
    "BloomConfig": "ALiBi",
    "MptConfig": "ALiBi",
    "FalconConfig": "computes its attention in its own code",
    "Qwen3NextConfig": "linear_attention keep a recurrent state",
    "Mamba2Config": "keeps a recurrent state",
    "T5Config": "encoder-decoder",
    "Llama4TextConfig": "chunked_attention see other keys",
    "Gemma3Config": "reads images",
    "DeepseekV32Config": "indexed_attention see other keys",
}


def save_config(class_name: str, directory: Path, **changes: Any) -> Path:
    import transformers

    getattr(transformers, class_name)(**changes).save_pretrained(directory)
    return directory


def copy_model(source: Path, directory: Path, **config_changes: Any) -> Path:
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **config_changes}))
    return directory


@pytest.mark.parametrize(("class_name", "reason"), REFUSED.items())
def test_what_cannot_run_exactly_is_refused_with_the_reason_before_its_weights_are_read(
    class_name: str, reason: str, tmp_path: Path
) -> None:
    path = save_config(class_name, tmp_path)  # there are no weights to read
    with pytest.raises(Unsupported, match=reason) as caught:
        load_model(path)
    assert caught.value.param == "model"


def test_a_falcon_with_alibi_is_refused_for_its_biases(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="ALiBi"):
        load_model(save_config("FalconConfig", tmp_path, alibi=True))


def test_a_model_that_attends_twice_per_layer_is_refused_by_the_probe() -> None:
    import transformers

    from kea.models.calls import register

    register()
    model = transformers.AutoModelForCausalLM.from_config(transformers.DiffLlamaConfig(**COMMON))
    with pytest.raises(Unsupported, match="once in each layer"):
        discover_layers(model)


def test_a_model_whose_mask_is_not_its_window_is_refused_by_the_probe() -> None:
    from kea.models.calls import register

    register()
    model = build_model("mistral")
    for layer in model.model.layers:
        layer.self_attn.config = type(model.config)(**{**model.config.to_dict(), "sliding_window": 5})
        layer.self_attn.config._attn_implementation = "kea_probe"
    with pytest.raises(Unsupported, match="masks its attention otherwise than by a window of 5 tokens"):
        discover_layers(model)


def test_a_model_that_differs_when_flattened_is_refused(
    family_path: FamilyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    original = transformers.LlamaModel.forward

    def mixing(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", mixing)
    with pytest.raises(ModelLoadFailed, match="other logits in flattened batches"):
        load_model(family_path("llama"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/model", "There is no model directory ./no/such/model"),
        ("/no/such/model", "There is no model directory /no/such/model"),
        ("not a model!", "There is no model directory not a model!"),
    ],
)
def test_a_missing_directory_is_told_in_a_sentence_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ModelLoadFailed, match=message) as caught:
        load_model(name)
    assert caught.value.hint is not None
    assert "Hugging Face" in caught.value.hint


def test_a_directory_without_a_config_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ModelLoadFailed, match="is a file"):
        load_model(tmp_path / "model.gguf")


def test_a_hub_id_that_cannot_be_fetched_is_told_in_a_sentence() -> None:
    with pytest.raises(
        ModelLoadFailed, match="no directory nobody/nothing here and no copy of it in the cache"
    ) as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadFailed, match="Could not read the config"):
        load_model(tmp_path)


def test_a_checkpoint_without_safetensors_is_not_unpickled(family_path: FamilyPath, tmp_path: Path) -> None:
    path = copy_model(family_path("llama"), tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    torch.save(build_model("llama").state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ModelLoadFailed, match="safetensors"):
        load_model(path)
    assert load_model(path, allow_pickle=True).facts.family == "llama"


def test_a_truncated_weight_file_is_told(family_path: FamilyPath, tmp_path: Path) -> None:
    path = copy_model(family_path("llama"), tmp_path / "cut")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelLoadFailed, match="Could not read the weights") as caught:
        load_model(path)
    assert "config.json" not in str(caught.value)


def test_weights_of_another_shape_are_told_by_name(family_path: FamilyPath, tmp_path: Path) -> None:
    path = copy_model(family_path("llama"), tmp_path / "other")
    weights = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    height, width = weights[name].shape
    weights[name] = torch.zeros(height, width + 1)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadFailed) as caught:
        load_model(path)
    assert f"asks for: {name} as [{height}, {width}] (it is [{height}, {width + 1}])." in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_by_name(value: float, family_path: FamilyPath, tmp_path: Path) -> None:
    path = copy_model(family_path("llama"), tmp_path / "spoilt")
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match=r"1 weights .* not finite .* model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(path)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_type_that_is_none_is_told_with_its_key(key: str, family_path: FamilyPath, tmp_path: Path) -> None:
    path = copy_model(family_path("llama"), tmp_path / "typed", **{key: "float17"})
    with pytest.raises(ModelLoadFailed, match=rf"config\.json .* {key} is 'float17'; it must be"):
        load_model(path)


def test_weights_that_the_config_asks_for_and_the_files_lack_are_not_made_up(
    family_path: FamilyPath, tmp_path: Path
) -> None:
    path = copy_model(family_path("llama"), tmp_path / "short", num_hidden_layers=4)
    with pytest.raises(ModelLoadFailed, match=r"lacks weights.*model\.layers\.3"):
        load_model(path)


@pytest.mark.parametrize(
    ("options", "param"),
    [({"dtype": "int8"}, "dtype"), ({"backend": "fast"}, "backend"), ({"max_len": 0}, "max_model_len")],
)
def test_wrong_options_are_named(family_path: FamilyPath, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load_model(family_path("llama"), **options)
    assert caught.value.param == param


def test_facts_of_the_trained_model(stories260k: Path) -> None:
    facts = load_model(stories260k).facts
    assert (facts.name, facts.family, facts.dtype, facts.device) == ("stories260k", "llama", "float32", "cpu")
    assert (facts.vocab_size, facts.max_len, facts.eos_token_ids) == (512, 512, (2,))
    assert facts.num_parameters == 260_032
    assert [(layer.num_heads, layer.num_kv_heads, layer.key_dim) for layer in facts.layers] == [(8, 4, 8)] * 5
    assert facts.kv_token_bytes == 5 * 4 * (8 + 8) * 4


def test_half_precision_runs_when_asked_for(stories260k: Path) -> None:
    model = load_model(stories260k, dtype="bfloat16")
    assert model.facts.dtype == "bfloat16"
    assert model.create_cache(8)[0].keys.dtype == torch.bfloat16
    text = torch.tensor([1, 403, 407, 261, 378])
    half, full = (run_paged(decoder, [text], max_chunk=3)[0] for decoder in (model, load_model(stories260k)))
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


def test_progress_counts_the_weights_and_ends_with_the_check(
    stories260k: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[LoadProgress] = []
    load_model(stories260k, progress=seen.append)
    weights = [event for event in seen if event.stage == "weights"]
    assert [event.done for event in weights] == list(range(1, weights[0].total + 1))
    assert seen[-1] == LoadProgress("check", 1, 1)
    assert capfd.readouterr() == ("", "")


def step_at(position: int) -> StepInput:
    page = position // 4
    return StepInput(
        token_ids=torch.tensor([5]),
        positions=torch.tensor([position]),
        logit_rows=torch.tensor([0]),
        plan=StepPlan(
            (SequencePlan(0, 1, position, (-1,) * page + (0,), (Run(position, position + 1),)),),
            torch.tensor([position % 4]),
            4,
        ),
    )


def test_learned_positions_end_and_rotary_ones_do_not(family_path: FamilyPath) -> None:
    learned, rotary = load_model(family_path("gpt2")), load_model(family_path("llama"))
    assert learned.facts.max_len == rotary.facts.max_len == MAX_LEN
    with pytest.raises(ContextLengthExceeded, match=f"Position {MAX_LEN} is past the {MAX_LEN} positions"):
        learned.forward(step_at(MAX_LEN), learned.create_cache(4))
    assert learned.forward(step_at(MAX_LEN - 1), learned.create_cache(4)).isfinite().all()
    assert rotary.forward(step_at(10 * MAX_LEN), rotary.create_cache(4)).isfinite().all()


def test_a_failed_forward_leaves_the_model_usable(family_path: FamilyPath) -> None:
    model = load_model(family_path("llama"))
    with pytest.raises(RuntimeError):
        model.forward(step_at(3), tuple(reversed(load_model(family_path("gpt_neox")).create_cache(4))))
    assert model.forward(step_at(3), model.create_cache(4)).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimates_made_before_loading_are_those_of_the_loaded_model(name: str, family_path: FamilyPath) -> None:
    path = family_path(name)
    description, facts = describe_model(path), load_model(path).facts
    assert description.kv_token_bytes == facts.kv_token_bytes
    assert description.num_parameters is not None
    assert 0 <= description.num_parameters - facts.num_parameters <= 16  # a few buffers are stored beside the weights
    assert description.weights_bytes == 4 * description.num_parameters
    assert (description.family, description.max_len) == (facts.family, facts.max_len)
    assert (description.num_layers, description.refusal) == (len(facts.layers), None)


def test_a_description_names_the_refusal_and_needs_no_weights(tmp_path: Path) -> None:
    description = describe_model(save_config("BloomConfig", tmp_path))
    assert description.refusal is not None
    assert "ALiBi" in description.refusal
    assert description.weights_bytes is None


def test_kv_of_half_precision_is_half(family_path: FamilyPath) -> None:
    path = family_path("llama")
    full, half = (describe_model(path, dtype=dtype).kv_token_bytes for dtype in ("float32", "bfloat16"))
    assert full == 2 * (half or 0)


def test_a_model_saved_without_its_name_is_named_by_its_directory(tmp_path: Path) -> None:
    assert load_model(save_model("qwen3", tmp_path)).facts.name == "qwen3"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, Sampling()),
        ({"eos_token_id": 2, "max_length": 77}, Sampling()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05},
            Sampling(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05),
        ),
        ({"temperature": 0.3}, Sampling(temperature=0.3)),
        ({"do_sample": True, "top_k": 50}, Sampling(top_k=50)),
    ],
)
def test_the_sampling_that_a_model_recommends(
    content: dict[str, Any] | None, expected: Sampling, tmp_path: Path
) -> None:
    save_config("LlamaConfig", tmp_path)
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_default_sampling(tmp_path) == expected


@pytest.mark.parametrize("content", [{"temperature": "hot"}, {"top_p": 7.5}])
def test_a_recommendation_that_is_none_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    save_config("LlamaConfig", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadFailed, match="generation"):
        read_default_sampling(tmp_path)
