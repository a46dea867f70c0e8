"""Products with weights in panels: every kind of weights on every path equals numpy's product in double precision."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from kea.kernels import matrix as matrices
from kea.kernels.arena import Arena
from kea.kernels.matrix import PanelMatrix, pack_fp16, pack_matrix, padded, record_product, tiles_bytes
from kea.kernels.panels import BYTE, FP16, FULL, HALF
from kea.kernels.program import FROM_BACK, TEAM, Operation, Program, aligned_zeros
from kea.kernels.tiles import has_tiles
from kea.models.lean import steps

F32 = NDArray[np.float32]
NONE: F32 = np.empty(0, np.float32)


def weights(shape: tuple[int, int], kind: int, seed: int = 0) -> PanelMatrix:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if kind == HALF:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind == FP16:
        values = values.astype(np.float16).astype(np.float32)
    packed = pack_matrix(values, quantize=kind == BYTE)
    assert packed.kind == kind
    return packed


class Recorded(NamedTuple):
    """The operations of a product, the last of which is the product itself, and what they need and make."""

    operations: list[Operation]
    holds: list[object]
    out: F32


def record(matrix: PanelMatrix, bias: F32, x: F32, num_threads: int) -> Recorded:
    """Record the product as this machine would compute it."""
    rows = aligned_zeros((len(x), padded(matrix.depth)), np.float32)
    rows[:, : matrix.depth] = x
    taken, operations = rows, []
    if matrix.takes_tiles(len(x)):
        taken = aligned_zeros((max(1, tiles_bytes(len(x), matrix.depth, matrix.kind)),), np.uint8)
        arguments = np.array([rows.ctypes.data, rows.shape[1], len(rows), taken.ctypes.data, matrix.kind, 0], np.int64)
        operations.append(Operation(steps.CUT, arguments, -(-len(rows) // steps.CHUNK_ROWS)))
    out = aligned_zeros((len(x), matrix.padded_columns), np.float32)
    operation, holds = record_product(matrix, bias, taken, out, num_threads)
    return Recorded([*operations, operation], [rows, *holds], out)


def multiply(matrix: PanelMatrix, bias: F32, x: F32, num_threads: int = 2) -> F32:
    recorded = record(matrix, bias, x, num_threads)
    TEAM.run(Program(recorded.operations, recorded.holds), num_threads)
    return recorded.out[:, : matrix.num_columns]


@pytest.fixture(params=["tiles", "vectors"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the path of machines with tiles, where this is one, and on that of all others."""
    if request.param == "vectors":
        monkeypatch.setattr(matrices, "has_tiles", lambda: False)
    elif not has_tiles():
        pytest.skip("this processor has no tile unit")
    return str(request.param)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 49, 64, 129, 300])
@pytest.mark.parametrize("shape", [(1, 8), (3, 5), (4, 16), (70, 33), (130, 64), (33, 300), (600, 7), (40, 1700)])
@pytest.mark.parametrize("kind", [FULL, HALF, BYTE, FP16])
def test_products_equal_double_precision(num_rows: int, shape: tuple[int, int], kind: int, path: str) -> None:
    matrix = weights(shape, kind)
    x = np.random.default_rng(1).standard_normal((num_rows, shape[1])).astype(np.float32)
    bias = np.zeros(padded(shape[0]), np.float32)
    bias[: shape[0]] = np.random.default_rng(2).standard_normal(shape[0])
    exact = x.astype(np.float64) @ matrix.rows(np.arange(shape[0])).astype(np.float64).T
    for vector in (NONE, bias):
        expected = exact + (vector[: shape[0]] if vector.size else 0.0)
        assert np.abs(multiply(matrix, vector, x) - expected).max(initial=0.0) < 2e-5 * max(1.0, np.sqrt(shape[1]))


@pytest.mark.parametrize("kind", [FULL, HALF, FP16])
@pytest.mark.parametrize("num_rows", [5, 16, 32, 70])
def test_products_are_no_less_precise_than_those_of_fp32(num_rows: int, kind: int, path: str) -> None:
    matrix = weights((320, 1536), kind)
    x = np.random.default_rng(1).standard_normal((num_rows, 1536)).astype(np.float32)
    whole = matrix.rows(np.arange(320))
    exact = x.astype(np.float64) @ whole.astype(np.float64).T
    assert np.square(multiply(matrix, NONE, x) - exact).mean() <= np.square(x @ whole.T - exact).mean()


@pytest.mark.parametrize("num_rows", [1, 3, 8, 40])
@pytest.mark.parametrize("kind", [FULL, HALF, BYTE, FP16])
def test_chunks_taken_from_the_back_are_the_same_products(num_rows: int, kind: int, path: str) -> None:
    matrix = weights((600, 70), kind)
    x = np.random.default_rng(1).standard_normal((num_rows, 70)).astype(np.float32)
    expected = multiply(matrix, NONE, x, num_threads=1)
    recorded = record(matrix, NONE, x, num_threads=2)
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(recorded.operations[-1].kernel.address)
    TEAM.run(Program(recorded.operations[:-1], recorded), 1)
    for chunk in reversed(range(recorded.operations[-1].num_chunks or 0)):
        call(recorded.operations[-1].arguments.ctypes.data, chunk + FROM_BACK)
    assert np.array_equal(recorded.out[:, :600], expected)


def test_a_product_of_few_rows_streams_the_whole_matrix() -> None:
    matrix = weights((8192, 64), HALF)
    first, size = matrix.panels.ctypes.data, matrix.panels.nbytes
    for num_threads in (1, 2, 5):
        operation = record(matrix, NONE, np.zeros((8, 64), np.float32), num_threads).operations[-1]
        assert operation.stream is not None
        assert operation.num_chunks is not None
        start, stop, chunk_bytes, first_bytes = operation.stream
        assert (start, stop) == (first, first + size)
        assert (operation.num_chunks - 1) * chunk_bytes < size <= operation.num_chunks * chunk_bytes
        assert 0 < first_bytes <= (size // 2 if num_threads <= 2 else chunk_bytes)
    assert record(matrix, NONE, np.zeros((300, 64), np.float32), 2).operations[-1].stream is None
    whole = weights((8192, 64), FULL)
    assert record(whole, NONE, np.zeros((2, 64), np.float32), 2).operations[-1].stream is None
    assert record(whole, NONE, np.zeros((3, 64), np.float32), 2).operations[-1].stream is not None


def test_three_parts_hold_a_number_exactly() -> None:
    """What tiles are fed: numbers of all sizes and signs, times one, come out as they went in."""
    if not has_tiles():
        pytest.skip("this processor has no tile unit")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 32)) * 10.0 ** rng.integers(-20, 20, (40, 32))).astype(np.float32)
    assert np.array_equal(multiply(weights_of(np.eye(32, dtype=np.float32)), NONE, x), x)


def weights_of(values: F32, *, quantize: bool = False) -> PanelMatrix:
    return pack_matrix(values, quantize=quantize)


def test_digits_hold_what_is_near_a_rows_largest_exactly() -> None:
    """Times one, such numbers come out as they went in, whatever their row's size; the others nearly so."""
    if not has_tiles():
        pytest.skip("this processor has no tile unit")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 128)) * 10.0 ** rng.integers(-28, 36, (40, 1))).astype(np.float32)
    x[7] = x[:, 0] = 0.0
    values = 64.0 * np.eye(128, dtype=np.float32)
    values[:, 0] = 127.0  # so that the others are whole numbers of steps
    product = multiply(weights_of(values, quantize=True), NONE, x)[:, 1:] / np.float32(64.0)
    largest = np.abs(x).max(axis=1, keepdims=True)
    is_near, x = np.abs(x[:, 1:]) >= largest / 64, x[:, 1:]
    assert np.array_equal(x[is_near], product[is_near])
    assert (np.abs(product - x) <= largest * 2.0**-30).all()


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_digits_lose_less_than_fp32_does(factor: float) -> None:
    """Also where a few values of a row are a thousand times the others."""
    if not has_tiles():
        pytest.skip("this processor has no tile unit")
    matrix = weights((200, 1536), BYTE)
    x = np.random.default_rng(1).standard_normal((24, 1536)).astype(np.float32)
    x[:, [5, 200, 1500]] *= np.float32(factor)
    wide = matrix.rows(np.arange(200))
    exact = x.astype(np.float64) @ wide.astype(np.float64).T
    error = np.abs(multiply(matrix, NONE, x) - exact)
    assert np.sqrt((error**2).mean()) < 0.5 * np.sqrt(((x @ wide.T - exact) ** 2).mean())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", [HALF, BYTE, FP16])
def test_what_is_not_finite_is_not_hidden(value: float, kind: int, path: str) -> None:
    x = np.ones((9, 40), np.float32)
    x[1, 7] = value
    product = multiply(weights((20, 40), kind), NONE, x)
    assert not np.isfinite(product[1]).any()
    assert np.isfinite(np.delete(product, 1, axis=0)).all()


@pytest.mark.parametrize("kind", [FULL, HALF, BYTE, FP16])
def test_rows_of_a_packed_matrix_are_read_back(kind: int) -> None:
    values = np.random.default_rng(0).standard_normal((70, 9)).astype(np.float32)
    if kind == HALF:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind == FP16:
        values = values.astype(np.float16).astype(np.float32)
    packed = pack_matrix(values, quantize=kind == BYTE)
    chosen = np.array([69, 0, 3, 3, 17])
    if kind == BYTE:
        step = np.abs(values).max(axis=1, keepdims=True) / 127
        assert (np.abs(packed.rows(chosen) - values[chosen]) <= step[chosen] * 0.5001).all()
    else:
        assert np.array_equal(packed.rows(chosen), values[chosen])


def test_one_value_that_is_no_bfloat16_keeps_a_matrix_whole() -> None:
    values = np.ones((70, 9), np.float32)
    assert pack_matrix(values).kind == HALF
    values[69, 8] = 1.0 + 2.0**-20
    assert pack_matrix(values).kind == FULL


def test_a_row_of_zeros_can_be_quantized() -> None:
    values = np.zeros((4, 8), np.float32)
    values[1] = 3.0
    assert np.array_equal(pack_matrix(values, quantize=True).rows(np.arange(4)), values)


ALL_FP16 = np.arange(1 << 16).astype(np.uint16).view(np.float16)
FINITE_FP16 = ALL_FP16[np.isfinite(ALL_FP16)]


@pytest.mark.parametrize("num_rows", [1, 8, 24, 64])
def test_every_fp16_weight_is_multiplied_exactly(num_rows: int, path: str) -> None:
    """The largest, subnormal ones and both zeros among them: times one they come out as they are."""
    values = FINITE_FP16.reshape(-1, 64).astype(np.float32)
    matrix = weights_of(values)
    assert matrix.kind == FP16
    x = np.eye(64, dtype=np.float32)
    product = np.concatenate([multiply(matrix, NONE, x[m : m + num_rows]) for m in range(0, 64, num_rows)])
    assert np.array_equal(product, values.T)


@pytest.mark.parametrize("num_rows", [1, 8, 24])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_not_hidden(value: float, num_rows: int, path: str) -> None:
    values = np.full((20, 40), 1.0 + 2.0**-10, np.float16)
    values[3, 7] = value
    product = multiply(pack_fp16([values], Arena()), NONE, np.ones((num_rows, 40), np.float32))
    assert not np.isfinite(product[:, 3]).any()
    assert np.isfinite(np.delete(product, 3, axis=1)).all()


def test_parts_of_fp16_are_packed_as_their_values_in_fp32_are() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((rows, 33)).astype(np.float16) for rows in (5, 70)]
    packed, whole = pack_fp16(parts, Arena()), pack_matrix(np.concatenate(parts).astype(np.float32))
    assert packed.kind == whole.kind == FP16
    assert np.array_equal(packed.panels, whole.panels)
    assert pack_fp16([np.ones((5, 33), np.float16)], Arena()).kind == HALF


def test_fp16_is_held_in_fp32_where_the_processor_does_not_widen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "WIDENS_FP16", False)
    values = np.random.default_rng(0).standard_normal((70, 33)).astype(np.float16)
    for packed in (pack_fp16([values], Arena()), pack_matrix(values.astype(np.float32))):
        assert packed.kind == FULL
        assert np.array_equal(packed.rows(np.arange(70)), values.astype(np.float32))


def test_one_value_that_is_no_fp16_keeps_a_matrix_whole() -> None:
    values = np.full((70, 9), 1.0 + 2.0**-10, np.float32)
    assert pack_matrix(values).kind == FP16
    for value in (1.0 + 2.0**-11, 65520.0, 2.0**-25):
        values[69, 8] = value
        assert pack_matrix(values).kind == FULL
