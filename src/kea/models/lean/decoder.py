"""The lean decoder's forward: a recorded program of kernels, on the CPU in fp32.

Attention is a part of the program where its backend is made of such kernels, else it stands between the pieces.

Owns the weights in our layout, the buffers of a step and the programs recorded for numbers of rows; one forward at a
time. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.base import AttentionBackend, LayerCache
from kea.attention.numba_cpu import NumbaAttention, NumbaPlan
from kea.attention.numba_program import RecordedLayers, Spare
from kea.attention.threads import running_kernels
from kea.kernels.program import TEAM, Program
from kea.models.base import ModelFacts, StepInput
from kea.models.hosted import allocate_cache
from kea.models.lean.buffers import Buffers
from kea.models.lean.recording import Recorder, Shape
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import DecoderWeights, LayerWeights
from kea.models.rotary import Frequencies

F32 = NDArray[np.float32]

MIN_ROWS = 64
MAX_RECORDINGS = 256


@dataclass(frozen=True, slots=True)
class Recording:
    """The pieces of a forward; the attention of layer i is computed between pieces i and i + 1, from and to `heads`.

    With `attention` there is one piece, which contains it.
    """

    pieces: tuple[Program, ...]
    attention: RecordedLayers | None
    heads: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, F32], ...]
    logits: F32


class LeanDecoder:
    """A `DecoderModel` for the shapes that a `DecoderSpec` describes. `rotary`: frequencies by layer type."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        facts: ModelFacts,
        backend: AttentionBackend,
        *,
        rotary: Mapping[str | None, Frequencies],
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._facts = facts
        self._backend = backend
        self._rotary = {kind: (found.values.cpu().numpy(), found.scale) for kind, found in rotary.items()}
        self._buffers = Buffers(MIN_ROWS)
        self._spare = Spare()
        self._recordings: dict[Shape, Recording] = {}

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The types in which the layers' matrices are held: float32, uint16 for bfloat16, int8."""
        layers = self._weights.layers
        matrices = (linear.weight for layer in layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
        return frozenset(str(matrix.panels.dtype) for matrix in matrices)

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return allocate_cache(self._facts, num_slots)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        with torch.inference_mode(), running_kernels() as num_threads:
            recording = self._recording(Shape(len(step.token_ids), len(step.logit_rows), num_threads))
            self._fill(step)
            prepared = self._backend.prepare(step.plan)
            chunks: dict[str, int] = {}
            if recording.attention is not None:
                assert isinstance(prepared, NumbaPlan)
                chunks = recording.attention.fill(prepared, cache, num_threads)
            TEAM.run(recording.pieces[0], num_threads, **chunks)
            for index, (query, key, value, attended) in enumerate(recording.heads):
                found = prepared.attend(self._facts.layers[index], query, key, value, cache[index])
                width = found.shape[1] * found.shape[2]
                attended[:, :width] = found.numpy().reshape(len(found), width)
                TEAM.run(recording.pieces[index + 1], num_threads)
            return self._logits(recording)

    def _logits(self, recording: Recording) -> torch.Tensor:
        logits = recording.logits[:, : self._facts.vocab_size].copy()
        if self._spec.logit_scale != 1.0:
            logits *= np.float32(self._spec.logit_scale)
        if self._spec.logit_softcap is not None:
            cap = np.float32(self._spec.logit_softcap)
            logits = np.tanh(logits / cap) * cap
        return torch.from_numpy(logits)

    # What changes from step to step

    def _fill(self, step: StepInput) -> None:
        """Put the step's rows where the program reads them."""
        num_rows = len(step.token_ids)
        hidden = self._buffers.get("hidden", num_rows, self._spec.hidden_size)
        hidden[:] = self._weights.embedding.rows(step.token_ids.numpy())
        if self._spec.embedding_scale != 1.0:
            hidden *= np.float32(self._spec.embedding_scale)
        self._buffers.get("logit_rows", len(step.logit_rows), dtype=np.int64)[:] = step.logit_rows.numpy()
        positions = step.positions.numpy().astype(np.float64)
        for kind, (frequencies, scale) in self._rotary.items():
            cos, sin = self._phases(kind, num_rows)
            turned = np.remainder(positions[:, None] * frequencies, 2 * np.pi)  # as kea.models.rotary
            phases = turned.astype(np.float32)
            np.multiply(np.cos(phases), np.float32(scale), out=cos)
            np.multiply(np.sin(phases), np.float32(scale), out=sin)

    def _phases(self, kind: str | None, num_rows: int) -> tuple[F32, F32]:
        """Cos and sin [T, R] of one type of layers."""
        width = len(self._rotary[kind][0])
        return self._buffers.get(f"cos {kind}", num_rows, width), self._buffers.get(f"sin {kind}", num_rows, width)

    def _phases_of(self, index: int, num_rows: int) -> tuple[F32, F32]:
        if not self._spec.rotates[index]:
            none = np.empty((num_rows, 0), np.float32)
            return none, none
        kind = self._spec.layer_types[index]
        return self._phases(kind if kind in self._rotary else None, num_rows)

    # Recording

    def _recording(self, shape: Shape) -> Recording:
        recording = self._recordings.get(shape)
        while recording is None:
            age = self._buffers.age
            made = self._record(shape)
            if self._buffers.age != age or len(self._recordings) >= MAX_RECORDINGS:
                self._recordings.clear()  # a buffer has moved, which all of them point to
            if self._buffers.age == age:
                recording = self._recordings[shape] = made
        return recording

    def _record(self, shape: Shape) -> Recording:
        recorder = Recorder(self._spec, self._facts, self._buffers, shape)
        is_whole = isinstance(self._backend, NumbaAttention)
        attention = RecordedLayers(self._facts.layers, self._spare) if is_whole else None
        pieces: list[Program] = []
        heads = []
        result: F32 | None = None
        after = None
        for index, layer in enumerate(self._weights.layers):
            recorder.enter(result, (after, layer.before_attention), layer.qkv)
            normed = recorder.rows("normed", shape.num_rows, self._spec.hidden_size)
            qkv = recorder.linear("qkv", normed, layer.qkv)
            recorder.heads(qkv, layer, index, self._phases_of(index, shape.num_rows))
            attended = recorder.attended(index)
            if attention is not None:
                recorder.operations += attention.operations(index, (*recorder.placed(index), attended))
            else:
                pieces.append(recorder.piece())
                query, key, value = (torch.from_numpy(part) for part in recorder.placed(index))
                heads.append((query, key, value, attended))
            result = self._record_rest(recorder, layer, attended)
            after = layer.after_mlp
        recorder.enter(result, (after, self._weights.final_norm), self._weights.head, last=True)
        last = recorder.rows("last", shape.num_logits, self._spec.hidden_size)
        logits = recorder.linear("logits", last, self._weights.head)
        pieces.append(recorder.piece())
        return Recording(tuple(pieces), attention, tuple(heads), logits)

    def _record_rest(self, recorder: Recorder, layer: LayerWeights, attended: F32) -> F32:
        """The rest of a layer behind its attention; returns what is to be added to the hidden rows."""
        recorder.cut(attended, layer.out)
        out = recorder.linear("result", attended, layer.out)
        recorder.enter(out, (layer.after_attention, layer.before_mlp), layer.gate_up)
        normed = recorder.rows("normed", recorder.shape.num_rows, self._spec.hidden_size)
        both = recorder.linear("both", normed, layer.gate_up)
        gated = recorder.gate(both, layer.down)
        return recorder.linear("result", gated, layer.down)
