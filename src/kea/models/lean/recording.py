"""Writes the lean decoder's forward down as a program of kernels, for one number of rows. Knows no requests.

Attention is recorded with the rest, or stands between two pieces of the program where its backend is no program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kea.kernels.matrix import PanelMatrix, padded, record_product, tiles_bytes
from kea.kernels.program import Kernel, Operation, Program
from kea.models.base import ModelFacts
from kea.models.lean import steps
from kea.models.lean.buffers import Buffers
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import LayerWeights, Linear, Norm

F32 = NDArray[np.float32]


class Shape(NamedTuple):
    """What a program is recorded for: rows of the step, rows whose logits are wanted, threads that will run it."""

    num_rows: int
    num_logits: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Phases:
    """The rotary of one type of layers: frequencies [R] fp64, the factor on cos and sin."""

    frequencies: NDArray[np.float64]
    scale: float


@dataclass(slots=True)
class Recorder:
    """Collects the operations of a piece. One per recording."""

    spec: DecoderSpec
    facts: ModelFacts
    buffers: Buffers
    shape: Shape
    operations: list[Operation] = field(default_factory=list)
    holds: list[object] = field(default_factory=list)

    def piece(self) -> Program:
        """Return what was recorded since the last piece."""
        program = Program(self.operations, self.holds)
        self.operations, self.holds = [], []
        return program

    def begin(self, embedding: PanelMatrix, rotary: Mapping[str | None, Phases]) -> None:
        """Record how the step's tokens and positions become hidden rows and phases."""
        num_rows = self.shape.num_rows
        a = np.zeros(steps.NUM_BEGIN, np.int64)
        a[steps.B_ROWS], a[steps.TOKENS], a[steps.POSITIONS] = num_rows, *(part.ctypes.data for part in self.step_rows)
        a[steps.HIDDEN], a[steps.HIDDEN_WIDTH] = self.hidden.ctypes.data, self.spec.hidden_size
        a[steps.PANELS], a[steps.PANEL_BYTES] = embedding.panels.ctypes.data, embedding.panels.strides[0]
        a[steps.PANEL_KIND] = embedding.kind
        if embedding.scales.size:
            a[steps.SCALES], a[steps.NUM_SCALES] = embedding.scales.ctypes.data, embedding.scales.size
        a[steps.EMBEDDING_SCALE] = _bits(self.spec.embedding_scale)
        kinds = np.zeros((len(rotary), steps.NUM_KIND), np.int64)
        for row, (kind, found) in zip(kinds, rotary.items(), strict=True):
            cos, sin = self.phases(kind, len(found.frequencies))
            row[steps.FREQUENCIES], row[steps.NUM_FREQUENCIES] = found.frequencies.ctypes.data, len(found.frequencies)
            row[steps.PHASE_SCALE] = _bits(found.scale)
            row[steps.PHASE_COS], row[steps.PHASE_SIN] = cos.ctypes.data, sin.ctypes.data
        a[steps.KINDS], a[steps.NUM_KINDS] = kinds.ctypes.data, len(kinds)
        self._row_wise(steps.BEGIN, a, num_rows)
        self.holds += [embedding, kinds, rotary]

    def finish(self, logits: F32) -> None:
        """Record how logits are scaled and capped, where the model does so."""
        scale, cap = self.spec.logit_scale, self.spec.logit_softcap or 0.0
        if scale == 1.0 and cap == 0.0:
            return
        a = np.zeros(steps.NUM_FINISH, np.int64)
        a[steps.LOGITS], a[steps.LOGITS_WIDTH] = logits.ctypes.data, logits.shape[1]
        a[steps.NUM_LOGITS], a[steps.VOCAB_SIZE] = len(logits), self.facts.vocab_size
        a[steps.LOGIT_SCALE], a[steps.LOGIT_CAP] = _bits(scale), _bits(cap)
        self._row_wise(steps.FINISH, a, len(logits))

    def enter(
        self, y: F32 | None, norms: tuple[Norm | None, Norm | None], to: Linear | None, *, last: bool = False
    ) -> None:
        """Add a block's result to the hidden rows; make the rows that the linear `to` takes. `norms`: behind, before.

        `last`: only for the rows whose logits are wanted.
        """
        num_rows = self.shape.num_logits if last else self.shape.num_rows
        after, before = norms
        a = np.zeros(steps.NUM_ENTER, np.int64)
        a[steps.X], a[steps.WIDTH] = self.hidden.ctypes.data, self.spec.hidden_size
        if y is not None:
            a[steps.Y], a[steps.Y_WIDTH] = y.ctypes.data, y.shape[1]
        a[steps.NUM_ROWS] = num_rows
        a[steps.INDEX] = self.logit_rows.ctypes.data if last else 0
        a[steps.AFTER], a[steps.AFTER_BIAS] = _norm_addresses(after)
        a[steps.BEFORE], a[steps.BEFORE_BIAS] = _norm_addresses(before)
        a[steps.EPS], a[steps.SCALE] = _bits(self.spec.norm_eps), _bits(self.spec.residual_scale)
        a[steps.CENTRED] = self.spec.family.centred
        if to is not None:
            rows = self.rows("last" if last else "normed", num_rows, self.spec.hidden_size)
            a[steps.ROWS], a[steps.ROWS_WIDTH] = rows.ctypes.data, rows.shape[1]
            if to.weight.takes_tiles(num_rows):
                a[steps.TILES], a[steps.TILES_KIND] = self.tiles(num_rows, to).ctypes.data, to.weight.kind
        self._row_wise(steps.ENTER, a, num_rows)

    def linear(self, name: str, x: F32, linear: Linear) -> F32:
        """Record a product of rows, or of the tiles that were made of them."""
        width = linear.weight.padded_columns
        out: F32 = self.buffers.get(f"{name} {width}", len(x), width)
        taken = self.tiles(len(x), linear) if linear.weight.takes_tiles(len(x)) else x
        operation, holds = record_product(linear.weight, linear.bias, taken, out, self.shape.num_threads)
        self.operations.append(operation)
        self.holds += holds
        return out

    def heads(self, qkv: F32, layer: LayerWeights, index: int, phases: tuple[F32, F32]) -> None:
        """Record how queries, keys and values become heads."""
        spec = self.facts.layers[index]
        a = np.zeros(steps.NUM_HEADS_ARGUMENTS, np.int64)
        a[steps.QKV], a[steps.QKV_WIDTH], a[steps.H_ROWS] = qkv.ctypes.data, qkv.shape[1], len(qkv)
        a[steps.NUM_HEADS], a[steps.NUM_KV] = spec.num_heads, spec.num_kv_heads
        a[steps.KEY_DIM], a[steps.VALUE_DIM] = spec.key_dim, spec.value_dim
        query, key, value = self.placed(index)
        a[steps.QUERY], a[steps.KEY], a[steps.VALUE] = query.ctypes.data, key.ctypes.data, value.ctypes.data
        a[steps.COS], a[steps.SIN], a[steps.PHASES] = phases[0].ctypes.data, phases[1].ctypes.data, phases[0].shape[1]
        a[steps.PAIRS], a[steps.H_EPS] = self.spec.family.pairs, _bits(self.spec.norm_eps)
        for norm, first in ((layer.query_norm, steps.QUERY_NORM), (layer.key_norm, steps.KEY_NORM)):
            if norm is not None:
                a[first], a[first + 2] = _norm_addresses(norm)
                a[first + 1] = norm.weight.size
        self._row_wise(steps.HEADS, a, len(qkv))

    def gate(self, both: F32, to: Linear) -> F32:
        """Record the gated activation."""
        size = self.spec.intermediate_size
        gated = self.rows("gated", len(both), size)
        a = np.zeros(steps.NUM_GATE, np.int64)
        a[steps.BOTH], a[steps.BOTH_WIDTH], a[steps.G_ROWS] = both.ctypes.data, both.shape[1], len(both)
        a[steps.SIZE], a[steps.TANH] = size, self.spec.activation == "gelu_tanh"
        a[steps.GATED], a[steps.GATED_WIDTH] = gated.ctypes.data, gated.shape[1]
        if to.weight.takes_tiles(len(both)):
            a[steps.G_TILES], a[steps.G_TILES_KIND] = self.tiles(len(both), to).ctypes.data, to.weight.kind
        self._row_wise(steps.GATE, a, len(both))
        return gated

    def cut(self, rows: F32, to: Linear) -> None:
        """Record how rows become tiles, where the linear `to` takes them."""
        if not to.weight.takes_tiles(len(rows)):
            return
        a = np.zeros(steps.NUM_CUT, np.int64)
        a[steps.C_ROWS], a[steps.C_WIDTH], a[steps.C_NUM_ROWS] = rows.ctypes.data, rows.shape[1], len(rows)
        a[steps.C_TILES], a[steps.C_TILES_KIND] = self.tiles(len(rows), to).ctypes.data, to.weight.kind
        self._row_wise(steps.CUT, a, len(rows))

    # The step's arrays

    @property
    def hidden(self) -> F32:
        return self.buffers.get("hidden", self.shape.num_rows, self.spec.hidden_size)

    @property
    def step_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and positions [T]."""
        ids, positions = (self.buffers.get(name, self.shape.num_rows, dtype=np.int64) for name in ("ids", "positions"))
        return ids, positions

    def phases(self, kind: str | None, size: int) -> tuple[F32, F32]:
        """Cos and sin [T, R] of one type of layers."""
        cos, sin = (self.buffers.get(f"{name} {kind}", self.shape.num_rows, size) for name in ("cos", "sin"))
        return cos, sin

    @property
    def logit_rows(self) -> NDArray[np.int64]:
        return self.buffers.get("logit_rows", self.shape.num_logits, dtype=np.int64)

    def rows(self, name: str, num_rows: int, size: int) -> F32:
        return self.buffers.get(f"{name} {size}", num_rows, padded(size))

    def tiles(self, num_rows: int, to: Linear) -> NDArray[np.uint8]:
        size = tiles_bytes(num_rows, to.weight.depth, to.weight.kind)
        return self.buffers.get("tiles", -(-size // 4096), 4096, dtype=np.uint8)

    def placed(self, index: int) -> tuple[F32, F32, F32]:
        """Queries [T, H, Dk], keys [T, KV, Dk] and values [T, KV, Dv] of a layer."""
        spec, num_rows = self.facts.layers[index], self.shape.num_rows
        shapes = {
            "query": (spec.num_heads, spec.key_dim),
            "key": (spec.num_kv_heads, spec.key_dim),
            "value": (spec.num_kv_heads, spec.value_dim),
        }
        query, key, value = (self.buffers.get(f"{name} {shape}", num_rows, *shape) for name, shape in shapes.items())
        return query, key, value

    def attended(self, index: int) -> F32:
        spec = self.facts.layers[index]
        return self.rows("attended", self.shape.num_rows, spec.num_heads * spec.value_dim)

    def _row_wise(self, kernel: Kernel, arguments: NDArray[np.int64], num_rows: int) -> None:
        self.operations.append(Operation(kernel, arguments, -(-num_rows // steps.CHUNK_ROWS)))
        self.holds.append(arguments)


def _norm_addresses(norm: Norm | None) -> tuple[int, int]:
    if norm is None:
        return 0, 0
    return norm.weight.ctypes.data, norm.bias.ctypes.data if norm.bias.size else 0


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))
