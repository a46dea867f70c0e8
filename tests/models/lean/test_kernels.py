"""Rows of the embedding, as a step reads them out of panels, are those of the matrix, whatever holds its weights."""

from __future__ import annotations

import numpy as np
import pytest

from kea.kernels.arena import Arena
from kea.kernels.matrix import PanelMatrix, pack_fp16, pack_matrix
from kea.kernels.panels import BYTE, FP16, FULL, HALF
from kea.models.lean.kernels import place_weights


def read_row(matrix: PanelMatrix, index: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    row = np.full(matrix.depth, np.nan, np.float32)
    panels = (matrix.panels.ctypes.data, matrix.panels.strides[0], matrix.kind)
    place_weights(panels, index, matrix.scales, row)
    return row


def test_every_fp16_is_read_out_of_panels_as_it_is() -> None:
    values = np.arange(1 << 16).astype(np.uint16).view(np.float16).reshape(-1, 256)
    matrix = pack_fp16([values], Arena())
    assert matrix.kind == FP16
    for index, row in enumerate(values.astype(np.float32)):
        found = read_row(matrix, index)
        assert np.array_equal(found, row, equal_nan=True)
        assert np.array_equal(np.signbit(found), np.signbit(row))


@pytest.mark.parametrize("kind", [FULL, HALF, BYTE])
def test_rows_of_the_other_kinds_are_those_of_the_matrix(kind: int) -> None:
    values = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float32)
    if kind == HALF:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    matrix = pack_matrix(values, quantize=kind == BYTE)
    assert matrix.kind == kind
    for index in (0, 17, 39):
        assert np.array_equal(read_row(matrix, index), matrix.rows(np.array([index]))[0])
