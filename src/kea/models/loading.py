"""Loads a decoder from a directory or the hub through transformers. Owns the order of a load.

Refusals by config come before any weight is read; proofs that the loaded model runs exactly come after. Imports torch
and transformers where used. Knows no requests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kea.errors import InvalidRequest, ModelLoadFailed, Unsupported
from kea.models.base import QUANTIZATIONS, DecoderModel, ModelFacts
from kea.models.describing import model_name, resolve_dtype, resolve_kv_dtype
from kea.models.limits import Limits, read_limits
from kea.models.noted_config import as_whole, read_noting
from kea.models.progress import LoadProgress, ProgressCallback, reporting
from kea.models.source import (
    FILES_HINT,
    eos_ids,
    failing_as_load_error,
    resolve_source,
    try_read_generation_config,
)
from kea.models.support import check_class, check_config

if TYPE_CHECKING:
    import torch

    from kea.attention.base import AttentionBackend, LayerSpec
    from kea.models.graphs import GraphDecoder
    from kea.models.lean import DecoderSpec
    from kea.models.noted_model import Finding
    from kea.models.notes import Notes, NotesOf

logger = logging.getLogger(__name__)

LEAN_BACKENDS = frozenset({"auto", "numba"})


@dataclass(frozen=True, slots=True)
class Order:
    """One load: where from, in which arithmetic, with what bounds. `allow_pickle` also reads non-safetensors files.

    `may_be_lean`, `may_be_triton`: our own decoder, on a CPU or a GPU, runs the model where it covers it; transformers'
    code otherwise. `may_capture`: small
    steps are captured as CUDA graphs. `quantize`: what its matrices are rounded to, `kv_dtype`: how KV are kept; what
    is rounded only our decoder runs.
    """

    source: str
    dtype: torch.dtype
    device: str
    revision: str | None
    limits: Limits
    allow_pickle: bool
    may_be_lean: bool
    may_be_triton: bool
    may_capture: bool
    quantize: str | None
    kv_dtype: torch.dtype

    @property
    def of_proof(self) -> tuple[object, ...]:
        """What the logits of a proof depend on, beside the directory's small files: where it is stands for its weights,
        so that checkpoints of one shape do not take each other's place.
        """
        return (str(Path(self.source).resolve()), self.quantize, self.limits.use_long_rope)


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    backend: str = "auto",
    quantize: str | None = None,
    kv_cache_dtype: str = "auto",
    revision: str | None = None,
    max_len: int | None = None,
    allow_pickle: bool = False,
    graphs: bool = True,
    progress: ProgressCallback | None = None,
    notes: Notes | None = None,
) -> DecoderModel:
    """Load a decoder and prove that it runs exactly.

    `dtype` auto is fp32 on a CPU, the checkpoint's own elsewhere. `max_len` bounds the context; above a longrope
    model's original length it selects the long factors for every context. `allow_pickle` also reads checkpoints that
    are not safetensors. `backend` auto and numba run covered models by our own decoder on a CPU in fp32; torch and
    reference keep to transformers' code. `quantize` int8 rounds every row of the matrices to 127 steps on each side
    of zero: half to read, no longer exactly the checkpoint's model; the proof is of the rounded one. `kv_cache_dtype`
    float16 or int8 rounds keys and values where they are kept; the proof is of the model that keeps them as they are,
    and what rounding does to its logits must stay small. `graphs`: small steps on a GPU are captured (see
    `CapturingDecoder`). `notes`: where an earlier load noted what transformers' code computes of this checkpoint, that
    is what ours is compared with, and transformers is not imported. Raises `ModelLoadFailed`, `Unsupported` with the
    reason, or `InvalidRequest` for a parameter.
    """
    import torch

    from kea.attention import create_backend

    attention = create_backend(backend, device)
    source = resolve_source(name_or_path, revision=revision)
    noting = None if notes is None else notes.try_of(source)
    config = read_noting(source, revision, noting)
    check_config(config)
    arithmetic: torch.dtype = getattr(torch, resolve_dtype(dtype, device, config))
    may_be_lean = backend in LEAN_BACKENDS and device == "cpu" and arithmetic == torch.float32
    _check_quantize(quantize, may_be_lean=may_be_lean)
    kv = resolve_kv_dtype(kv_cache_dtype, str(arithmetic).removeprefix("torch."), may_be_lean=may_be_lean)
    may_capture = graphs and device.startswith("cuda") and attention.name == "triton"
    limits = read_limits(config, max_len)
    bounds = (revision, limits, allow_pickle, may_be_lean, attention.name == "triton", may_capture)
    order = Order(source, arithmetic, device, *bounds, quantize, kv_dtype=getattr(torch, kv))
    noted = None if noting is None or not may_be_lean else _try_load_noted(order, config, attention, noting, progress)
    if noted is not None:
        return noted
    with reporting(progress) as report:
        model = _read_weights(order, as_whole(config, source, revision))
        report("check", 0, 1)
        decoder = _bind_and_prove(model, attention, order, noting)
        report("check", 1, 1)
    return decoder


def _check_quantize(quantize: str | None, *, may_be_lean: bool) -> None:
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise InvalidRequest(
            f"quantize is {quantize!r}; it must be one of {', '.join(QUANTIZATIONS)}, or left out.", param="quantize"
        )
    if not may_be_lean:
        raise Unsupported(
            f"quantize is {quantize!r}, which runs on Kea's own decoder: on a CPU, in float32, with the backend auto.",
            param="quantize",
        )


def _read_weights(order: Order, config: Any) -> Any:
    """Return transformers' model in evaluation mode on the device; every weight must be in the checkpoint."""
    from transformers import AutoModelForCausalLM

    model_class = _model_class(config)
    check_class(model_class, config.model_type)
    with failing_as_load_error(order.source, "the weights", None if order.allow_pickle else FILES_HINT):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            order.source,
            config=config,
            dtype=order.dtype,
            revision=order.revision,
            use_safetensors=None if order.allow_pickle else True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
        )
    problems = sorted(map(str, loaded["missing_keys"]))
    problems += [
        f"{name} as {list(wanted)} (it is {list(found)})" for name, found, wanted in sorted(loaded["mismatched_keys"])
    ]
    if problems:
        raise ModelLoadFailed(
            f"The checkpoint {order.source} lacks weights that its config asks for: {', '.join(problems[:5])}"
            f"{' and others' if len(problems) > 5 else ''}.",
            hint="Its files and its config.json do not belong together.",
            param="model",
        )
    with failing_as_load_error(order.source, f"the weights onto {order.device}", None):
        return model.to(order.device).eval()


def _model_class(config: Any) -> Any:
    """Return transformers' class for this config; `ModelLoadFailed` where it has no causal model of the type."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        raise ModelLoadFailed(
            f"transformers has no decoder-only language model of type {config.model_type}.", param="model"
        )
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _bind_and_prove(model: Any, attention: AttentionBackend, order: Order, notes: NotesOf | None) -> DecoderModel:
    from kea.models.calls import register
    from kea.models.hosted import HostedDecoder
    from kea.models.lean import round_weights
    from kea.models.probe import discover_layers, eager_logits, prove_equal
    from kea.models.rotary import install_double_rotary

    register()
    with failing_as_load_error(order.source, "the layers", None):
        layers = discover_layers(model)
        if order.quantize is not None:
            round_weights(model)
        expected = eager_logits(model)
        install_double_rotary(model, use_long=order.limits.use_long_rope)
        if order.limits.use_long_rope:  # the model's own frequencies are the short ones, for a text this short
            expected = eager_logits(model)
        facts = _facts(
            model.config,
            attention,
            order,
            layers=tuple(spec for _, spec in layers),
            eos_token_ids=_eos_token_ids(model.config, order),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        lean = _try_lean(model, facts, expected, order, notes) if order.may_be_lean else None
        if lean is not None:
            return lean
        _check_hosted(facts, order)
        if order.may_be_triton:
            from kea.models.lean.triton_decoder import try_prove_triton

            ours = try_prove_triton(model, facts, expected, attention)
            if ours is not None:
                return _with_graphs(ours, attention) if order.may_capture else ours
        decoder = HostedDecoder(
            model,
            facts,
            attention,
            tuple(module for module, _ in layers),
            position_rows=order.limits.position_rows,
        )
        prove_equal(decoder, expected)
    return _with_graphs(decoder, attention) if order.may_capture else decoder


def _check_hosted(facts: ModelFacts, order: Order) -> None:
    """Raise `Unsupported` where a load asks for what transformers' code does not do."""
    rounded = {"quantize": order.quantize, "kv_cache_dtype": None if order.kv_dtype == order.dtype else facts.kv_dtype}
    for param, value in rounded.items():
        if value is not None:
            raise Unsupported(
                f"{param} is {value!r}, which runs on Kea's own decoder; that does not cover {facts.family} models of "
                "this config.",
                param=param,
            )


def _with_graphs(decoder: GraphDecoder, attention: AttentionBackend) -> DecoderModel:
    """Return the decoder with its small steps captured, where its attention can be."""
    from kea.attention.triton_gpu import TritonAttention
    from kea.models.graphs import CudaRecorder, GraphedDecoder

    return GraphedDecoder(decoder, attention, CudaRecorder()) if isinstance(attention, TritonAttention) else decoder


def _try_lean(
    model: Any, facts: ModelFacts, expected: torch.Tensor, order: Order, notes: NotesOf | None
) -> DecoderModel | None:
    """Return our own decoder of a covered model, proven equal; None where it is not covered or not equal."""
    from kea.models.lean import try_read_spec
    from kea.models.noted_model import Finding, note_finding
    from kea.models.rotary import try_double_rotary

    spec = try_read_spec(model.config.get_text_config())
    rotary = None if spec is None else try_double_rotary(model.model.rotary_emb)
    if spec is None or rotary is None:
        return None
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    found = Finding(facts.layers, rotary.sets, facts.eos_token_ids, facts.num_parameters, is_tied, expected)
    try:
        decoder = _prove_lean(model, spec, facts, found, order)
    except ModelLoadFailed as error:
        logger.warning("The lean decoder does not run %s exactly, transformers' code runs it: %s", facts.name, error)
        return None
    if notes is not None:
        note_finding(found, Path(order.source), order.of_proof, notes)
    return decoder


def _try_load_noted(
    order: Order, config: Any, attention: AttentionBackend, notes: NotesOf, progress: ProgressCallback | None
) -> DecoderModel | None:
    """Return our own decoder, proven by what an earlier load noted; None where nothing was, or it is so no more."""
    from kea.models.lean import try_read_spec
    from kea.models.noted_model import check_weights, try_read_finding
    from kea.models.stored_model import StoredModel

    spec = try_read_spec(config.get_text_config())
    found = None if spec is None else try_read_finding(Path(order.source), order.of_proof, notes)
    if spec is None or found is None:
        return None
    report = progress or (lambda _: None)
    report(LoadProgress("weights", 0, 1))
    facts = _facts(
        config,
        attention,
        order,
        layers=found.layers,
        eos_token_ids=found.eos_token_ids,
        num_parameters=found.num_parameters,
    )
    try:
        stored = StoredModel(Path(order.source))
        decoder = _prove_lean(stored, spec, facts, found, order, report=report)
        check_weights(stored, found)
    except (ModelLoadFailed, AttributeError, OSError, RuntimeError, ValueError) as error:
        logger.info(
            "What was noted of %s is not so any more; it is loaded as if for the first time: %s", order.source, error
        )
        return None
    report(LoadProgress("check", 1, 1))
    return decoder


def _prove_lean(
    weights_of: Any,
    spec: DecoderSpec,
    facts: ModelFacts,
    found: Finding,
    order: Order,
    *,
    report: ProgressCallback = lambda _: None,
) -> DecoderModel:
    """Return our own decoder with the weights of a model, or of its files, once it computes what is expected.

    `report`: told when the weights have been read, and that the check begins. Raises `ModelLoadFailed` where it does
    not. The proof is with KV as they are; a decoder that rounds them is the same one over another cache.
    """
    from kea.attention import create_backend
    from kea.models.lean import LeanDecoder, fuse_weights
    from kea.models.probe import check_rounding, prove_equal

    backend = create_backend("numba")
    weights = fuse_weights(weights_of, spec, is_tied=found.is_tied, quantize=order.quantize is not None)
    report(LoadProgress("weights", 1, 1))
    report(LoadProgress("check", 0, 1))
    facts = replace(facts, backend=backend.name)
    exact = replace(facts, kv_dtype=facts.dtype, kv_token_bytes=_kv_token_bytes(facts.layers, order.dtype))
    decoder = LeanDecoder(spec, weights, exact, backend, rotary=found.rotary)
    prove_equal(decoder, found.expected)
    decoder.compile_kernels()
    if facts == exact:
        return decoder
    decoder = LeanDecoder(spec, weights, facts, backend, rotary=found.rotary)
    check_rounding(decoder, found.expected)
    return decoder


def _facts(
    config: Any,
    attention: AttentionBackend,
    order: Order,
    *,
    layers: tuple[LayerSpec, ...],
    eos_token_ids: tuple[int, ...],
    num_parameters: int,
) -> ModelFacts:
    text = config.get_text_config()
    return ModelFacts(
        name=model_name(order.source),
        family=text.model_type,
        vocab_size=text.vocab_size,
        max_len=order.limits.max_len,
        layers=layers,
        eos_token_ids=eos_token_ids,
        kv_token_bytes=_kv_token_bytes(layers, order.kv_dtype),
        num_parameters=num_parameters,
        device=order.device,
        dtype=str(order.dtype).removeprefix("torch."),
        kv_dtype=str(order.kv_dtype).removeprefix("torch."),
        backend=attention.name,
        quantize=order.quantize,
        batch_invariant=False,  # the matrix products of torch are not, whatever the attention is
    )


def _eos_token_ids(config: Any, order: Order) -> tuple[int, ...]:
    return eos_ids(try_read_generation_config(order.source, order.revision) or config.get_text_config())


def _kv_token_bytes(layers: Sequence[LayerSpec], dtype: torch.dtype) -> int:
    from kea.attention.storage import head_bytes

    return sum(
        spec.num_kv_heads * (head_bytes(dtype, spec.key_dim) + head_bytes(dtype, spec.value_dim)) for spec in layers
    )
