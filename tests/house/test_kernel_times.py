"""Tests of the tool that tells where a forward's time goes."""

from __future__ import annotations

import pytest

from kea.models.shipped import require_embedded_model
from tools import kernel_times


@pytest.mark.parametrize("prefix", [0, 64])
def test_kernels_are_told_and_are_about_the_whole(capsys: pytest.CaptureFixture[str], prefix: int) -> None:
    model = str(require_embedded_model())
    wanted = ["--model", model, "--batch", "3", "--context", "24", "--prefix", str(prefix), "--rounds", "3"]
    assert kernel_times.main(wanted) == 0
    rows = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert {"whole", "begin", "enter_alone", "sum of the parts"} <= set(rows)
    for kind in ("multiply", "attend"):
        assert any(name.startswith(kind) for name in rows), kind
