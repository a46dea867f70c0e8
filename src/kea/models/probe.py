"""Finds out how a loaded model calls attention, and proves that running it our way gives its own numbers.

Owns the two probing forwards of a load. What cannot be proved is refused with the reason. Knows no requests.
"""

from __future__ import annotations

from typing import Any

import torch

from kea.attention.base import LayerSpec, Run, SequencePlan, StepPlan
from kea.errors import ModelLoadFailed, Unsupported
from kea.models.base import DecoderModel, StepInput
from kea.models.calls import LAYER_ATTRIBUTE, PROBE_NAME, MaskFunction, ProbeRecorder, RecordedCall

NUM_TOKENS = 9
PAGE_TOKENS = 4
FAR = 1 << 24
MAX_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}
MAX_ERROR_HALF = 0.05


def discover_layers(model: Any) -> tuple[tuple[torch.nn.Module, LayerSpec], ...]:
    """Run one forward and return every attention module with its layer's spec, in order.

    Raises `Unsupported` unless every hidden layer called the registered attention exactly once, with a causal mask or a
    causal window that equals the window it passed.
    """
    recorder = ProbeRecorder()
    for module in model.modules():
        setattr(module, LAYER_ATTRIBUTE, recorder)
    model.set_attn_implementation(PROBE_NAME)
    device = model.get_input_embeddings().weight.device
    ids = probe_ids(model.config.get_text_config().vocab_size, 1).to(device)
    positions = torch.arange(NUM_TOKENS, device=device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=positions[0])
    finally:
        for module in model.modules():
            delattr(module, LAYER_ATTRIBUTE)
    _check_calls(recorder.calls, model)
    return tuple((call.module, call.spec) for call in recorder.calls)


def probe_ids(vocab_size: int, rows: int) -> torch.Tensor:
    """Return [rows, N] token ids spread over the vocabulary, the same every time."""
    return (torch.arange(rows * NUM_TOKENS) * 7919 + 3).remainder(vocab_size).view(rows, NUM_TOKENS)


def _check_calls(calls: list[RecordedCall], model: Any) -> None:
    config = model.config.get_text_config()
    num_modules = len({id(call.module) for call in calls})
    if not len(calls) == num_modules == config.num_hidden_layers:
        raise Unsupported(
            f"{type(model).__name__} has {config.num_hidden_layers} layers, but its code called the registered "
            f"attention {len(calls)} times in {num_modules} modules; it must be once in each layer.",
            param="model",
        )
    for index, call in enumerate(calls):
        problem = _mask_problem(call)
        if problem is not None:
            raise Unsupported(f"Layer {index} of {type(model).__name__} {problem}.", param="model")


def _mask_problem(call: RecordedCall) -> str | None:
    if call.mask is None:
        return "makes its own attention mask, so what a query sees there is unknown"
    if not _sees_window(call.mask, call.spec.window):
        window = "all earlier tokens" if call.spec.window is None else f"a window of {call.spec.window} tokens"
        return f"masks its attention otherwise than by {window}"
    return None


def _sees_window(mask: MaskFunction, window: int | None) -> bool:
    """Compare the model's mask at far positions with causal attention over `window` keys (the query's own included)."""
    last = FAR if window is None else window - 1
    distances = {0, last, min(last + 1, FAR), *(1 << k for k in range(FAR.bit_length())), 3000, -1, -7}
    for distance in distances:
        visible = mask(0, torch.tensor(0), torch.tensor(FAR), torch.tensor(FAR - distance))
        if bool(visible) != (0 <= distance <= last):
            return False
    return True


def eager_logits(model: Any) -> torch.Tensor:
    """Return the logits [2, N, V] of two texts under the model's own attention.

    Raises `ModelLoadFailed` where they are not finite numbers: nothing could be compared with them.
    """
    model.set_attn_implementation("eager")
    device = model.get_input_embeddings().weight.device
    ids = probe_ids(model.config.get_text_config().vocab_size, 2).to(device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    if not logits.isfinite().all():
        raise ModelLoadFailed(_not_finite(model), hint="Its files may be damaged: download them again.", param="model")
    return logits.float()


def _not_finite(model: Any) -> str:
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if not bad:
        return f"{type(model).__name__} computes logits that are not finite numbers, from weights that all are."
    return f"{len(bad)} weights have values that are not finite numbers, such as {bad[0]}."


def prove_equal(decoder: DecoderModel, expected: torch.Tensor) -> None:
    """Compute the two texts of `eager_logits` and compare.

    Raises `ModelLoadFailed` where the logits differ by more than the dtype's rounding.
    """
    error = relative_error(decoder, expected)
    allowed = MAX_ERROR.get(getattr(torch, decoder.facts.dtype), MAX_ERROR_HALF)
    if not error <= allowed:
        raise ModelLoadFailed(
            f"{decoder.facts.family} computes other logits in flattened batches than alone: relative error "
            f"{error:.2g}, allowed {allowed:g}.",
            hint="It would not be served exactly, so it is not served.",
            param="model",
        )


def check_rounding(decoder: DecoderModel, expected: torch.Tensor) -> None:
    """Raise `Unsupported` where a decoder that rounds its KV computes far other logits than `eager_logits`: keys that
    are too large for the type, say."""
    error = relative_error(decoder, expected)
    if not error <= MAX_ERROR_HALF:
        raise Unsupported(
            f"kv_cache_dtype is {decoder.facts.kv_dtype!r}, which {decoder.facts.name} does not bear: relative error "
            f"of its logits {error:.2g}, allowed {MAX_ERROR_HALF:g}.",
            hint="Keep its keys and values as they are: auto.",
            param="kv_cache_dtype",
        )


def relative_error(decoder: DecoderModel, expected: torch.Tensor) -> float:
    """Compute the two texts of `eager_logits` through pages, chunked and mixed; return how far the logits are off."""
    ids = probe_ids(decoder.facts.vocab_size, 2)
    cache = decoder.create_cache(8 * PAGE_TOKENS)
    tables = ((6, 0, 3), (1, 7, 2))
    half = NUM_TOKENS // 2
    parts: list[list[torch.Tensor]] = [[], []]
    for spans in (((0, half), (0, NUM_TOKENS - 1)), ((half, NUM_TOKENS), (NUM_TOKENS - 1, NUM_TOKENS))):
        step = _step(ids, tables, spans)
        logits = decoder.forward(_to(step, decoder.facts.device), cache).clone()  # valid until the next forward
        rows = spans[0][1] - spans[0][0]
        parts[0].append(logits[:rows])
        parts[1].append(logits[rows:])
    ours = torch.stack([torch.cat(rows) for rows in parts])
    return float((ours - expected).abs().max() / (1.0 + expected.abs().max()))


def _step(ids: torch.Tensor, tables: tuple[tuple[int, ...], ...], spans: tuple[tuple[int, int], ...]) -> StepInput:
    """Flatten the token spans [start, stop) of each text into one step that asks for every row's logits."""
    sequences, slots, row = [], [], 0
    for table, (start, stop) in zip(tables, spans, strict=True):
        sequences.append(SequencePlan(row, stop - start, start, table, (Run(0, stop),)))
        slots += [table[j // PAGE_TOKENS] * PAGE_TOKENS + j % PAGE_TOKENS for j in range(start, stop)]
        row += stop - start
    return StepInput(
        token_ids=torch.cat([text[start:stop] for text, (start, stop) in zip(ids, spans, strict=True)]),
        positions=torch.cat([torch.arange(start, stop) for start, stop in spans]),
        logit_rows=torch.arange(row),
        plan=StepPlan(tuple(sequences), torch.tensor(slots), PAGE_TOKENS),
    )


def _to(step: StepInput, device: str) -> StepInput:
    plan = StepPlan(step.plan.sequences, step.plan.slots.to(device), step.plan.page_tokens)
    return StepInput(step.token_ids.to(device), step.positions.to(device), step.logit_rows.to(device), plan)
