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

from kea.attention.base import AttentionBackend, LayerCache, PreparedPlan
from kea.attention.numba_cpu import NumbaAttention, NumbaPlan
from kea.attention.numba_program import RecordedLayers, Spare, parts
from kea.attention.threads import RUNNING, running_kernels
from kea.kernels.program import TEAM, Program
from kea.models.base import DrawOrder, ModelFacts, StepInput
from kea.models.hosted import allocate_cache
from kea.models.lean import steps
from kea.models.lean.buffers import Buffers
from kea.models.lean.choosing import NAME as CHOICES
from kea.models.lean.choosing import Choosing
from kea.models.lean.recording import Entering, Phases, Recorder, Shape
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import DecoderWeights, LayerWeights, Linear, Norm
from kea.models.rotary import Frequencies

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

MIN_ROWS = 64
MAX_RECORDINGS = 256
MIN_SHARED_WORK = 1 << 20
"""Multiplications with weights in a step below which one thread computes it: measured, a second one gains nothing."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The pieces of a forward; the attention of layer i is computed between pieces i and i + 1, from and to `heads`.

    With `attention` there is one piece, which contains it, and, where all rows have logits, `choosing` from them. A
    step is written to `ids`, `positions` and `logit_rows`.
    """

    pieces: tuple[Program, ...]
    attention: RecordedLayers | None
    choosing: Choosing | None
    heads: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, F32], ...]
    ids: I64
    positions: I64
    logit_rows: I64
    logits: torch.Tensor


class LeanDecoding:
    """A `Decoding` of the lean decoder: a run of a step's program leaves behind what the next one begins with."""

    def __init__(
        self,
        decoder: LeanDecoder,
        recording: Recording,
        prepared: NumbaPlan,
        num_chunks: dict[str, int],
        num_threads: int,
    ) -> None:
        assert prepared.is_growing, "a row's keys end in a page that it shares"
        self._decoder = decoder
        self._recording = recording
        self._prepared = prepared
        self._num_chunks = num_chunks | {CHOICES: len(recording.ids)}
        self._num_threads = num_threads

    def try_extend(self, row: int, index: int, page: int) -> bool:
        return self._prepared.try_extend(row, index, page, int(self._recording.positions[row]))

    def run(self, num_rounds: int) -> I64:
        assert self._decoder.is_current(self), "the model has computed something else meanwhile"
        recording = self._recording
        with RUNNING:
            TEAM.run(recording.pieces[0], self._num_threads, num_rounds=num_rounds, **self._num_chunks)
        self._prepared.num_advanced += num_rounds
        assert recording.choosing is not None
        return recording.choosing.take(num_rounds)


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
        self._rotary = {kind: Phases(found.values.cpu().numpy(), found.scale) for kind, found in rotary.items()}
        self._buffers = Buffers(MIN_ROWS)
        self._spare = Spare()
        self._recordings: dict[Shape, Recording] = {}
        self._decoding: LeanDecoding | None = None
        linears = [part for layer in weights.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self._num_weights = sum(part.weight.num_columns * part.weight.depth for part in (*linears, weights.head))

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The types in which the layers' matrices are held: float32, uint16 for bfloat16, float16, int8."""
        layers = self._weights.layers
        matrices = (linear.weight for layer in layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
        return frozenset(str(matrix.panels.dtype) for matrix in matrices)

    def compile_kernels(self) -> None:
        """Compile, or load from disk, whatever a step of any size runs, so that none has to wait for it."""
        layers = self._weights.layers
        linears = [linear for layer in layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        kernels = {kernel for linear in (*linears, self._weights.head) for kernel in linear.weight.kernels}
        kernels |= {steps.ADD, steps.ENTER, steps.ENTER_ALONE, steps.HEADS, steps.PLACE_HEAD}
        for kernel in (*kernels, steps.CUT, steps.CUT_ALONE, *dict(parts()).values()):
            kernel.compile()

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return allocate_cache(self._facts, num_slots)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        with running_kernels(has_operators=not self.can_draw) as given:
            recording, num_threads = self._enter(step, given)
            prepared = self._backend.prepare(step.plan)
            if recording.attention is None:
                self._run_pieces(recording, prepared, cache, num_threads)
            else:
                self._run(recording, prepared, cache, num_threads)
            return recording.logits

    @property
    def can_draw(self) -> bool:
        return isinstance(self._backend, NumbaAttention)

    def begin(self, step: StepInput, cache: tuple[LayerCache, ...], order: DrawOrder) -> LeanDecoding:
        with running_kernels(has_operators=False) as given:
            recording, num_threads = self._enter(step, given)
            assert recording.choosing is not None, "tokens are drawn by rows that are not all of a program's"
            assert recording.attention is not None
            prepared = self._backend.prepare(step.plan)
            assert isinstance(prepared, NumbaPlan)
            num_chunks = recording.attention.fill(prepared, cache, num_threads)
            recording.choosing.begin(order)
            self._decoding = LeanDecoding(self, recording, prepared, num_chunks, num_threads)
            return self._decoding

    def is_current(self, decoding: LeanDecoding) -> bool:
        """Whether nothing was computed since this began but for itself."""
        return decoding is self._decoding

    def _enter(self, step: StepInput, given: int) -> tuple[Recording, int]:
        """Return the recording of a step, with the step's rows where it reads them, and the threads to run it."""
        ids, positions, logit_rows = step.token_ids.numpy(), step.positions.numpy(), step.logit_rows.numpy()
        num_threads = given if len(ids) * self._num_weights >= MIN_SHARED_WORK else 1
        self._decoding = None  # whose rows these arrays had
        recording = self._recording(Shape(len(ids), len(logit_rows), num_threads))
        recording.ids[:], recording.positions[:], recording.logit_rows[:] = ids, positions, logit_rows
        return recording, num_threads

    def _run(
        self, recording: Recording, prepared: PreparedPlan, cache: tuple[LayerCache, ...], num_threads: int
    ) -> None:
        """Run a program that contains attention, for its logits."""
        assert recording.attention is not None
        assert isinstance(prepared, NumbaPlan)
        num_chunks = recording.attention.fill(prepared, cache, num_threads)
        TEAM.run(recording.pieces[0], num_threads, **num_chunks, **{CHOICES: 0})
        if recording.choosing is not None:
            prepared.num_advanced = 1

    def _run_pieces(
        self, recording: Recording, prepared: PreparedPlan, cache: tuple[LayerCache, ...], num_threads: int
    ) -> None:
        """Run the pieces of a program, and between them attention as its backend does it."""
        TEAM.run(recording.pieces[0], num_threads)
        for index, (query, key, value, attended) in enumerate(recording.heads):
            with torch.inference_mode():
                found = prepared.attend(self._facts.layers[index], query, key, value, cache[index])
            width = found.shape[1] * found.shape[2]
            attended[:, :width] = found.numpy().reshape(len(found), width)
            TEAM.run(recording.pieces[index + 1], num_threads)

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
        recorder.begin(self._weights.embedding, self._rotary)
        is_whole = isinstance(self._backend, NumbaAttention)
        attention = RecordedLayers(self._facts.layers, self._spare) if is_whole else None
        pieces: list[Program] = []
        heads = []
        for index, layer in enumerate(self._weights.layers):
            is_stored = recorder.heads(layer, index, self._phases_of(recorder, index), attention)
            attended = recorder.attended(index)
            if attention is not None:
                placed = (*recorder.placed(index), attended)
                recorder.operations += attention.operations(index, placed, is_stored=is_stored)
            else:
                pieces.append(recorder.piece())
                query, key, value = (torch.from_numpy(part) for part in recorder.placed(index))
                heads.append((query, key, value, attended))
            self._record_rest(recorder, layer, attended)
        last = recorder.enter(self._weights.final_norm, self._weights.head, last=True)
        logits = recorder.linear("logits", last, self._weights.head)
        recorder.finish(logits)
        choosing = None
        if attention is not None and shape.num_rows == shape.num_logits:
            ids, positions = recorder.step_rows
            choosing = Choosing(logits, self._facts.vocab_size, ids, positions)
            recorder.operations.append(attention.look(choosing.spoilt, CHOICES))
            recorder.operations += [*attention.advance(positions), choosing.operation]
        pieces.append(recorder.piece())
        shown = torch.from_numpy(logits)[:, : self._facts.vocab_size]
        rows = (*recorder.step_rows, recorder.logit_rows)
        return Recording(tuple(pieces), attention, choosing, tuple(heads), *rows, shown)

    def _phases_of(self, recorder: Recorder, index: int) -> tuple[F32, F32]:
        """Cos and sin of a layer, without columns where it is not rotated."""
        if not self._spec.rotates[index]:
            none = np.empty((recorder.shape.num_rows, 0), np.float32)
            return none, none
        kind = self._spec.layer_types[index]
        kind = kind if kind in self._rotary else None
        return recorder.phases(kind, len(self._rotary[kind].frequencies))

    def _record_rest(self, recorder: Recorder, layer: LayerWeights, attended: F32) -> None:
        """The rest of a layer behind its attention."""
        self._record_result(recorder, recorder.cut(attended, layer.out), layer.out, layer.after_attention)
        gating, gated = recorder.gating(layer.down)
        recorder.linear("both", recorder.enter(layer.before_mlp, layer.gate_up), layer.gate_up, gating)
        if gated.tiles is None:
            gated = recorder.cut(gated.rows[0], layer.down)
        self._record_result(recorder, gated, layer.down, layer.after_mlp)

    def _record_result(self, recorder: Recorder, x: Entering, linear: Linear, norm: Norm | None) -> None:
        """A block's last product, added to the hidden rows."""
        result = recorder.linear("result", x, linear, recorder.adding() if norm is None else None)
        if norm is not None:
            recorder.add(result, norm)
