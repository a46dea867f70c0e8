"""The script that measures on a GPU runs through all its parts, in sizes that Triton's interpreter can do."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tools import gpu_attention


def test_every_part_prints_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_attention.main(["--small"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    expected = (
        r"copy .* TB/s, product .* TFLOP/s",
        r"decode 2 x 40: .* us, .* of copying; plan \d+ us",
        r"chunk 20 behind 10: .* us, .* of the product",
        r"3 x 10 behind 64 shared: .* us, apart .* us",
        r"0\.00B 2 x 40: .* ms one by one",
        r"decode 2 x 40, 16 x 1 x 1: .* us",
        r"decode 2 x 40, 32 x 1 x 1: .* us",
    )
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_attention.main(["--small", "prefill"])
    assert "parts are attention, decoder, tiles; given: prefill" in capsys.readouterr().err
