"""The lean decoder: which models it takes, and that it equals transformers' own code there."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kea.attention import Run
from kea.errors import InvalidRequest, KeaError, Unsupported
from kea.kernels import program
from kea.models import DecoderModel, StepInput, load_model
from kea.models.hosted import HostedDecoder
from kea.models.lean import LeanDecoder, decoder, recording, round_weights, try_read_spec
from kea.models.lean import spec as spec_module
from tests.models.families import COMMON, FAMILIES, VOCAB_SIZE, build_model, save_model
from tests.models.paging import build_step, run_paged

FamilyPath = Callable[[str], Path]

COVERED = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"),
    *("olmo2", "olmo3", "glm4", "smollm3", "granite", "stablelm"),
)
OTHERS = tuple(sorted(set(FAMILIES) - set(COVERED)))
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "one kv head": ("llama", {"num_key_value_heads": 1}),
    "wide heads": ("llama", {"head_dim": 24}),
    "odd sizes": ("llama", {"vocab_size": 163, "intermediate_size": 45}),
    "tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "stretched rotary": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "qkv biases": ("stablelm", {"use_qkv_bias": True}),
    "heads behind their product": ("llama", {"head_dim": 32, "attention_bias": True}),
    "wide heads behind it": ("qwen3", {"head_dim": 96}),
    "heads in pairs behind it": ("glm4", {"head_dim": 32}),
    "heads in windows behind it": ("gemma3", {"head_dim": 64}),
    "multipliers": ("granite", {"embedding_multiplier": 3.0, "attention_bias": True}),
}
TOLERANCE = 1e-4


def random_text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


def both(path: Path) -> tuple[DecoderModel, DecoderModel]:
    """Load a model on the lean path and on transformers' own."""
    lean, hosted = load_model(path), load_model(path, backend="torch")
    assert isinstance(lean, LeanDecoder)
    assert isinstance(hosted, HostedDecoder)
    return lean, hosted


@pytest.mark.parametrize("name", COVERED)
def test_covered_families_are_chosen_without_being_asked_for(name: str, family_path: FamilyPath) -> None:
    lean, hosted = both(family_path(name))
    assert lean.facts == replace(hosted.facts, backend="numba")


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_left_to_transformers(name: str) -> None:
    class_name, changes = FAMILIES[name]
    assert try_read_spec(getattr(transformers, class_name)(**{**COMMON, **changes})) is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("stablelm", {"use_parallel_residual": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("llama", {"hidden_act": "relu"}),
    ],
)
def test_an_option_that_is_not_known_keeps_a_model_off_the_lean_path(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert isinstance(load_model(save_model(name, tmp_path, **changes)), HostedDecoder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_of_the_config_equal_transformers(variant: str, tmp_path: Path) -> None:
    name, changes = VARIANTS[variant]
    lean, _ = both(save_model(name, tmp_path, **changes))
    text = random_text(90)
    with torch.inference_mode():
        expected = build_model(name, **changes)(input_ids=text[None], use_cache=False).logits[0]
    for max_chunk in (1, 9, 100):
        assert (run_paged(lean, [text], max_chunk=max_chunk)[0] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("span", [(60, 61), (60, 63), (50, 75)])
def test_dropped_gaps_are_seen_by_neither(name: str, span: tuple[int, int], family_path: FamilyPath) -> None:
    text = random_text(span[1])
    runs = (Run(0, 3), Run(7, 30), Run(41, span[1]))
    table = (5, 3, 9, 1, 7, 20, 18, 19, 0, 2, 4, 6, 8, 10, 11, 12, 13, 14, 15)
    logits = []
    for model in both(family_path(name)):
        cache = model.create_cache(84)
        model.forward(build_step([text], [table], [(0, 0, span[0])]), cache)
        step = build_step([text], [table], [(0, *span)])
        plan = replace(step.plan, sequences=(step.plan.sequences[0]._replace(runs=runs),))
        logits.append(model.forward(replace(step, plan=plan), cache))
    assert (logits[0] - logits[1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("head_dim", [8, 32])
def test_rows_that_see_nothing_are_as_in_transformers(head_dim: int, tmp_path: Path) -> None:
    text, table, span = random_text(63), tuple(range(16)), (60, 63)
    logits = []
    for model in both(save_model("llama", tmp_path, head_dim=head_dim)):
        cache = model.create_cache(84)
        model.forward(build_step([random_text(83, 1)], [tuple(range(20, -1, -1))], [(0, 0, 83)]), cache)
        step = build_step([text], [table], [(0, *span)])
        plan = replace(step.plan, sequences=(step.plan.sequences[0]._replace(runs=(Run(62, 63),)),))
        logits.append(model.forward(replace(step, plan=plan), cache))
    assert (logits[0] - logits[1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_heads_behind_their_product_are_those_of_kernels_of_their_own(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model(name, tmp_path, head_dim=32)
    texts = [random_text(length, length) for length in (60, 3)]
    runs = []
    for is_apart in (True, False):
        if not is_apart:
            monkeypatch.setattr(recording, "_are_apart", lambda *_: False)
        model = load_model(path, kv_cache_dtype=kind)
        runs.append([torch.cat(run_paged(model, texts, max_chunk=max_chunk)) for max_chunk in (1, 40)])
    for ours, theirs in zip(*runs, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


def test_a_longer_step_in_between_moves_buffers_and_changes_nothing(family_path: FamilyPath) -> None:
    lean, _ = both(family_path("llama"))
    texts = [random_text(length, length) for length in (5, 100, 5)]
    logits = [run_paged(lean, [text], max_chunk=1000)[0] for text in texts]
    assert torch.equal(logits[0], logits[2])


HELD_AS = {torch.bfloat16: "uint16", torch.float16: "float16"}


def rounded_model(directory: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a model whose weights are all values of a type of 16 bits."""
    model = build_model("qwen2").to(dtype)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", HELD_AS)
def test_weights_of_a_16_bit_checkpoint_stay_16_bit_and_lose_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    lean, hosted = both(rounded_model(tmp_path, dtype))
    assert isinstance(lean, LeanDecoder)
    assert lean.weight_dtypes == {HELD_AS[dtype]}
    texts = [random_text(length, length) for length in (90, 30, 3)]
    for max_chunk in (1, 9, 100):
        pairs = zip(*(run_paged(model, texts, max_chunk=max_chunk) for model in (lean, hosted)), strict=True)
        assert all((ours - theirs).abs().max() < TOLERANCE for ours, theirs in pairs)


def test_matrices_of_one_checkpoint_keep_types_of_their_own(tmp_path: Path) -> None:
    model = build_model("qwen2").to(torch.float16)
    layers = model.model.layers
    layers[0].mlp.to(torch.bfloat16)
    layers[0].self_attn.q_proj.to(torch.bfloat16)  # fused with keys and values in fp16
    layers[1].mlp.down_proj.weight.data = layers[1].mlp.down_proj.weight.data.float() * (1.0 + 2.0**-20)
    for norm in (model.model.norm, layers[0].input_layernorm):
        norm.to(torch.float32).weight.data += 2.0**-20
    model.save_pretrained(tmp_path)
    lean, hosted = both(tmp_path)
    assert isinstance(lean, LeanDecoder)
    assert lean.weight_dtypes == {"float16", "uint16", "float32"}
    texts = [random_text(length, length) for length in (40, 3)]
    pairs = zip(*(run_paged(decoder, texts, max_chunk=9) for decoder in (lean, hosted)), strict=True)
    assert all((ours - theirs).abs().max() < TOLERANCE for ours, theirs in pairs)


@pytest.mark.parametrize("kind", ["float32", "uint16", "float16", "int8"])
def test_no_step_has_to_wait_for_a_compiler(
    kind: str, family_path: FamilyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernel in [found for found in gc.get_objects() if type(found) is program.Kernel]:
        monkeypatch.setattr(kernel, "_compiled", None)
    types = {name: dtype for dtype, name in HELD_AS.items()}
    path = rounded_model(tmp_path, types[kind]) if kind in types else family_path("llama")
    model = load_model(path, quantize="int8" if kind == "int8" else None)
    assert isinstance(model, LeanDecoder)
    assert model.weight_dtypes == {kind}

    def compile_late(function: Any, *_rest: object) -> None:
        raise AssertionError(f"{function.__name__} was not compiled when the model was loaded")

    monkeypatch.setattr(program, "CFunc", compile_late)
    for max_chunk in (200, 70, 9, 1):
        run_paged(model, [random_text(200)], max_chunk=max_chunk)
    for batch in (8, 32):
        run_paged(model, [random_text(3, seed) for seed in range(batch)], max_chunk=1)
    step = build_step([random_text(200)], [tuple(range(50))], [(0, 0, 200)])  # a chunk that is not its prompt's last
    assert len(model.forward(replace(step, logit_rows=step.logit_rows[:0]), model.create_cache(200))) == 0


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_batch_that_grows_moves_no_buffer(
    quantize: str | None, family_path: FamilyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whatever was recorded for other sizes would be recorded anew."""
    model = load_model(family_path("llama"), quantize=quantize)
    assert isinstance(model, LeanDecoder)
    cache = model.create_cache(32 * 4)
    monkeypatch.setattr(decoder, "MIN_SHARED_WORK", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        ages = []
        for batch in range(1, 33):
            texts = [random_text(1, seed) for seed in range(batch)]
            model.forward(build_step(texts, [(row,) for row in range(batch)], [(n, 0, 1) for n in range(batch)]), cache)
            ages.append(model._buffers.age)
    finally:
        torch.set_num_threads(before)
    assert len(set(ages)) <= 2, "more than once, where tiles begin"


def test_weights_that_are_not_16_bit_values_stay_whole(family_path: FamilyPath) -> None:
    lean, _ = both(family_path("llama"))
    assert isinstance(lean, LeanDecoder)
    assert lean.weight_dtypes == {"float32"}


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "qwen2"])
def test_int8_weights_run_as_the_model_rounded_alike(name: str, family_path: FamilyPath) -> None:
    lean = load_model(family_path(name), quantize="int8")
    assert isinstance(lean, LeanDecoder)
    assert lean.weight_dtypes == {"int8"}
    rounded = load_model(family_path(name), backend="torch")
    assert isinstance(rounded, HostedDecoder)
    texts = [random_text(length, length) for length in (90, 3)]
    exact = run_paged(rounded, texts, max_chunk=100)
    round_weights(rounded._model)
    for max_chunk in (1, 100):
        ours, theirs = (run_paged(model, texts, max_chunk=max_chunk) for model in (lean, rounded))
        assert all((a - b).abs().max() < TOLERANCE for a, b in zip(ours, theirs, strict=True))
    assert all((a - b).abs().max() > TOLERANCE for a, b in zip(ours, exact, strict=True)), "nothing was rounded"


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("llama", {"quantize": "int4"}, InvalidRequest),
        ("llama", {"quantize": "int8", "backend": "torch"}, Unsupported),
        ("llama", {"quantize": "int8", "dtype": "bfloat16"}, Unsupported),
        ("gpt_neox", {"quantize": "int8"}, Unsupported),
    ],
)
def test_where_int8_does_not_run_it_is_refused_by_name(
    name: str, options: dict[str, Any], error: type[KeaError], family_path: FamilyPath
) -> None:
    with pytest.raises(error, match="quantize is") as caught:
        load_model(family_path(name), **options)
    assert caught.value.param == "quantize"


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "qwen3"])
def test_rounded_kv_run_as_transformers_over_kv_rounded_alike(name: str, kind: str, family_path: FamilyPath) -> None:
    exact, hosted = load_model(family_path(name)), load_model(family_path(name), backend="reference")
    lean = load_model(family_path(name), kv_cache_dtype=kind)
    assert isinstance(lean, LeanDecoder)
    assert lean.facts.kv_dtype == kind
    assert isinstance(hosted, HostedDecoder)
    hosted._facts = replace(hosted.facts, kv_dtype=kind)
    texts = [random_text(length, length) for length in (60, 3)]
    for max_chunk in (1, 100):
        runs = (run_paged(model, texts, max_chunk=max_chunk) for model in (lean, hosted, exact))
        ours, theirs, unrounded = (torch.cat(run) for run in runs)
        assert (ours - theirs).abs().max() < 0.3 * (theirs - unrounded).abs().max()


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("llama", {"kv_cache_dtype": "fp8"}, InvalidRequest),
        ("llama", {"kv_cache_dtype": "bfloat16"}, Unsupported),
        ("llama", {"kv_cache_dtype": "float16", "backend": "torch"}, Unsupported),
        ("llama", {"kv_cache_dtype": "int8", "backend": "reference"}, Unsupported),
        ("llama", {"kv_cache_dtype": "float32", "dtype": "bfloat16"}, Unsupported),
        ("llama", {"kv_cache_dtype": "int8", "dtype": "bfloat16"}, Unsupported),
        ("gpt_neox", {"kv_cache_dtype": "int8"}, Unsupported),
    ],
)
def test_where_kv_are_not_rounded_it_is_refused_by_name(
    name: str, options: dict[str, Any], error: type[KeaError], family_path: FamilyPath
) -> None:
    with pytest.raises(error, match="kv_cache_dtype is") as caught:
        load_model(family_path(name), **options)
    assert caught.value.param == "kv_cache_dtype"


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "auto")])
def test_kv_as_the_arithmetic_has_them_run_everywhere(dtype: str, kind: str, family_path: FamilyPath) -> None:
    facts = load_model(family_path("gpt_neox"), dtype=dtype, kv_cache_dtype=kind).facts
    assert facts.kv_dtype == facts.dtype == dtype


def test_a_model_whose_keys_are_too_large_for_a_type_is_refused_with_it(tmp_path: Path) -> None:
    model = build_model("llama")
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.data *= 1e7
        layer.self_attn.q_proj.weight.data *= 1e-7
    model.save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=r"kv_cache_dtype is 'float16', which .* does not bear") as caught:
        load_model(tmp_path, kv_cache_dtype="float16")
    assert caught.value.param == "kv_cache_dtype"
    assert load_model(tmp_path, kv_cache_dtype="int8").facts.kv_dtype == "int8"


def test_a_model_that_the_table_gets_wrong_falls_back_with_a_warning(
    family_path: FamilyPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(spec_module.FAMILIES, "llama", spec_module.Family(pairs=True))
    with caplog.at_level(logging.WARNING):
        model = load_model(family_path("llama"))
    assert isinstance(model, HostedDecoder)
    assert model.facts.backend == "torch"
    assert "lean decoder does not run llama exactly" in caplog.text


def test_half_precision_is_left_to_transformers(family_path: FamilyPath) -> None:
    for backend in ("auto", "numba"):
        assert isinstance(load_model(family_path("llama"), dtype="bfloat16", backend=backend), HostedDecoder)


def test_a_family_off_the_lean_path_runs_on_the_kernels_where_asked(family_path: FamilyPath) -> None:
    path, text = family_path("gpt_oss"), random_text(50)
    model = load_model(path, backend="numba")
    assert isinstance(model, HostedDecoder)
    assert model.facts.backend == "numba"
    ours, theirs = (run_paged(decoder, [text], max_chunk=3)[0] for decoder in (model, load_model(path)))
    assert (ours - theirs).abs().max() < TOLERANCE


def test_models_may_run_in_several_threads_at_once(family_path: FamilyPath) -> None:
    """numba's pool ends the process when two threads enter it together; the lock keeps them apart."""
    models = [load_model(family_path(name)) for name in ("llama", "qwen3", "llama")]
    texts = [random_text(12, seed) for seed in range(3)]
    alone = [run_paged(model, [text], max_chunk=2)[0] for model, text in zip(models, texts, strict=True)]
    together: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        for _ in range(5):
            together[index] = run_paged(models[index], [texts[index]], max_chunk=2)[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(together[index], alone[index], atol=1e-5) for index in range(3))


def test_a_cache_of_another_shape_is_refused_before_a_kernel_reads_it(family_path: FamilyPath) -> None:
    model, other = load_model(family_path("llama")), load_model(family_path("qwen3"))
    step: StepInput = build_step([random_text(3)], [(0,)], [(0, 0, 3)])
    with pytest.raises(RuntimeError, match="holds heads of"):
        model.forward(step, other.create_cache(4))
