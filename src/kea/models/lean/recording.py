"""Writes the lean decoder's forward down as a program of kernels, for one number of rows. Knows no requests.

Attention is recorded with the rest, or stands between two pieces of the program where its backend is no program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kea.attention.base import LayerSpec
from kea.attention.numba_program import RecordedLayers
from kea.kernels import behind
from kea.kernels.behind import Then
from kea.kernels.gates import GATES
from kea.kernels.matrix import MAX_FINE_ROWS, PanelMatrix, padded, record_product, tiles_bytes
from kea.kernels.panels import BYTE
from kea.kernels.program import Kernel, Operation, Own, Program
from kea.kernels.tiles import TILE_DEPTH
from kea.models.base import ModelFacts
from kea.models.lean import steps
from kea.models.lean.buffers import Buffers
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import LayerWeights, Linear, Norm

F32 = NDArray[np.float32]


MAX_ROWS_ALONE = 32
MIN_EVEN_SHARE = 0.85
"""Up to so many rows, each thread makes all of those that a product takes for itself: see `kea.kernels.program.Own`."""

PAGE_BYTES = 4096


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
class Entering:
    """What a product takes: rows [1 or threads, M, padded K] fp32 or, where there are, tiles [1 or threads, bytes].

    `own`: what each thread makes its rows and tiles with; else they are those of all.
    """

    rows: F32
    tiles: NDArray[np.uint8] | None
    num_rows: int
    own: Own | None = None


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

    def add(self, y: F32, norm: Norm) -> None:
        """Record that a block's result is added to the hidden rows, with the norm behind the block."""
        a = np.zeros(steps.NUM_ADD, np.int64)
        a[steps.A_X], a[steps.A_WIDTH] = self.hidden.ctypes.data, self.spec.hidden_size
        a[steps.A_Y], a[steps.A_Y_WIDTH], a[steps.A_ROWS] = y.ctypes.data, y.shape[1], len(y)
        a[steps.AFTER], a[steps.AFTER_BIAS] = _norm_addresses(norm)
        a[steps.A_EPS], a[steps.A_SCALE] = _bits(self.spec.norm_eps), _bits(self.spec.residual_scale)
        a[steps.A_CENTRED] = self.spec.family.centred
        self._row_wise(steps.ADD, a, len(y))

    def enter(self, norm: Norm | None, to: Linear, *, last: bool = False) -> Entering:
        """Record how the hidden rows become those that the linear `to` takes, by the norm before it. `last`: only the
        rows whose logits are wanted.
        """
        num_rows = self.shape.num_logits if last else self.shape.num_rows
        entering = self._entering("last" if last else "normed", num_rows, to)
        rows, tiles = entering.rows, entering.tiles
        a = np.zeros(steps.NUM_ENTER, np.int64)
        a[steps.X], a[steps.WIDTH], a[steps.NUM_ROWS] = self.hidden.ctypes.data, self.spec.hidden_size, num_rows
        a[steps.INDEX] = self.logit_rows.ctypes.data if last else 0
        a[steps.BEFORE], a[steps.BEFORE_BIAS] = _norm_addresses(norm)
        a[steps.EPS], a[steps.CENTRED] = _bits(self.spec.norm_eps), self.spec.family.centred
        a[steps.ROWS], a[steps.ROWS_WIDTH], a[steps.ROWS_BYTES] = rows.ctypes.data, rows.shape[2], rows.strides[0]
        if tiles is not None:
            a[steps.TILES], a[steps.TILES_BYTES], a[steps.TILES_KIND] = (
                tiles.ctypes.data,
                tiles.strides[0],
                to.weight.kind,
            )
        self._alone_or_row_wise((steps.ENTER_ALONE, steps.ENTER), a, entering)
        return entering

    def cut(self, rows: F32, to: Linear) -> Entering:
        """Record how rows become those that the linear `to` takes: tiles, or they stay as they are."""
        if not to.weight.takes_tiles(len(rows)):
            return Entering(rows[None], None, len(rows))
        entering = self._entering(None, len(rows), to)
        assert entering.tiles is not None
        a = np.zeros(steps.NUM_CUT, np.int64)
        a[steps.C_ROWS], a[steps.C_WIDTH], a[steps.C_NUM_ROWS] = rows.ctypes.data, rows.shape[1], len(rows)
        a[steps.C_TILES], a[steps.C_TILES_BYTES] = entering.tiles.ctypes.data, entering.tiles.strides[0]
        a[steps.C_TILES_KIND] = to.weight.kind
        self._alone_or_row_wise((steps.CUT_ALONE, steps.CUT), a, entering)
        return entering

    def linear(self, name: str, x: Entering, linear: Linear, then: Then | None = None) -> F32:
        """Record a product of rows, or of the tiles that were made of them."""
        width = linear.weight.padded_columns
        out: F32 = self.buffers.get(f"{name} {width}", x.num_rows, width)
        taken: NDArray[Any] = x.rows if x.tiles is None else x.tiles
        operation, holds = record_product(
            linear.weight,
            linear.bias,
            taken if x.own is not None else taken[0],
            out,
            self.shape.num_threads,
            then=then,
            own=x.own,
        )
        self.operations.append(operation)
        self.holds += holds
        return out

    def adding(self) -> Then:
        """What adds a product to the hidden rows."""
        a = np.zeros(behind.NUM_ADD, np.int64)
        a[behind.TO], a[behind.TO_STRIDE] = self.hidden.ctypes.data, self.hidden.strides[0]
        a[behind.TO_WIDTH], a[behind.FACTOR] = self.spec.hidden_size, _bits(self.spec.residual_scale)
        return Then(behind.ADD, a)

    def gating(self, to: Linear) -> tuple[Then, Entering]:
        """What turns a product into gated activations, and what the linear `to` takes of them."""
        num_rows, size = self.shape.num_rows, self.spec.intermediate_size
        rows = self.rows("gated", num_rows, size)
        a = np.zeros(behind.NUM_GATE, np.int64)
        a[behind.GATED], a[behind.GATED_STRIDE] = rows.ctypes.data, rows.strides[0]
        a[behind.TANH] = self.spec.activation == "gelu_tanh"
        if not to.weight.takes_tiles(num_rows) or to.weight.kind == BYTE:
            return Then(behind.GATE, a, 2 * GATES), Entering(rows[None], None, num_rows)
        tiles = self.tiles("gated tiles", num_rows, to)
        a[behind.TILES], a[behind.NUM_STEPS] = tiles.ctypes.data, padded(size, TILE_DEPTH) // TILE_DEPTH
        return Then(behind.GATE, a, 2 * GATES), Entering(rows[None], tiles, num_rows)

    def heads(self, layer: LayerWeights, index: int, phases: tuple[F32, F32], attention: RecordedLayers | None) -> bool:
        """Record how the hidden rows become heads. Return whether new keys and values are then in the cache of
        `attention`: where a head is complete wherever it was formed.
        """
        x, qkv = self.enter(layer.before_attention, layer.qkv), layer.qkv
        rows = self.buffers.get(f"qkv {qkv.weight.padded_columns}", x.num_rows, qkv.weight.padded_columns)
        a = self._heads_arguments(rows, layer, index, phases)
        spec = self.facts.layers[index]
        num_groups = spec.num_heads + 2 * spec.num_kv_heads
        is_even = _is_even(num_groups, self.shape.num_threads) or x.num_rows > MAX_FINE_ROWS
        if attention is None or not is_even or not _are_apart(spec, layer):
            self.linear("qkv", x, qkv)
            self._row_wise(steps.HEADS, a, x.num_rows)
            return False
        a[steps.LAYER] = attention.address(index)
        call = np.zeros(behind.NUM_CALL, np.int64)
        call[behind.CALL_CODE], call[behind.CALL_ARGUMENTS] = steps.PLACE_HEAD.address, a.ctypes.data
        call[behind.GROUP_COLUMNS] = size = spec.key_dim
        self.linear("qkv", x, qkv, Then(behind.CALL, call, size))
        self.holds += [a, attention]
        return True

    def _heads_arguments(self, qkv: F32, layer: LayerWeights, index: int, phases: tuple[F32, F32]) -> steps.I64:
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
        return a

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

    def tiles(self, name: str, num_rows: int, to: Linear, num_threads: int = 1) -> NDArray[np.uint8]:
        """Tiles of rows for a linear, by thread [threads, bytes]."""
        size, most = (
            padded(tiles_bytes(count, to.weight.depth, to.weight.kind), PAGE_BYTES)
            for count in (num_rows, max(num_rows, MAX_ROWS_ALONE))
        )
        pages = self.buffers.get(name, num_threads * most // PAGE_BYTES, PAGE_BYTES, dtype=np.uint8)
        return pages[: num_threads * size // PAGE_BYTES].reshape(num_threads, size)

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

    def _entering(self, name: str | None, num_rows: int, to: Linear) -> Entering:
        """Room for rows and tiles: of each thread, where these are few. `name` None: only for tiles."""
        num_threads = self.shape.num_threads if num_rows <= MAX_ROWS_ALONE else 1
        rows = np.empty((num_threads, 0, 0), np.float32)
        if name is not None:
            size = padded(self.spec.hidden_size)
            # As many as there can be, so that a batch that grows moves nothing.
            most = self.buffers.get(f"{name} {size}", num_threads * max(num_rows, MAX_ROWS_ALONE), size)
            rows = most[: num_threads * num_rows].reshape(num_threads, num_rows, size)
        tiles = self.tiles("tiles", num_rows, to, num_threads) if to.weight.takes_tiles(num_rows) else None
        return Entering(rows, tiles, num_rows)

    def _alone_or_row_wise(self, kernels: tuple[Kernel, Kernel], a: NDArray[np.int64], entering: Entering) -> None:
        """Record what makes rows: as a part of the operation that takes them, or of some rows after the other."""
        alone, row_wise = kernels
        if entering.num_rows <= MAX_ROWS_ALONE:
            entering.own = Own(alone, a)
        else:
            self._row_wise(row_wise, a, entering.num_rows)

    def _row_wise(self, kernel: Kernel, arguments: NDArray[np.int64], num_rows: int) -> None:
        self.operations.append(Operation(kernel, arguments, -(-num_rows // steps.CHUNK_ROWS)))
        self.holds.append(arguments)


def _is_even(num_chunks: int, num_threads: int) -> bool:
    """Whether so many equal chunks keep all threads busy nearly to the end."""
    return num_chunks >= MIN_EVEN_SHARE * num_threads * -(-num_chunks // num_threads)


def _are_apart(spec: LayerSpec, layer: LayerWeights) -> bool:
    """Whether each head is columns of a product's own chunk, and needs nothing of other heads."""
    norms = (norm.weight.size for norm in (layer.query_norm, layer.key_norm) if norm is not None)
    size = spec.key_dim
    return size == spec.value_dim and size % TILE_DEPTH == 0 and all(found == size for found in norms)


def _norm_addresses(norm: Norm | None) -> tuple[int, int]:
    if norm is None:
        return 0, 0
    return norm.weight.ctypes.data, norm.bias.ctypes.data if norm.bias.size else 0


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))
