"""The table of the engine's own time per step: the stages are measured, and together they are the step."""

from __future__ import annotations

import pytest

from kea.engine.core import EngineCore
from kea.models.shipped import require_embedded_model
from kea.types import Sampling
from tools import overhead


@pytest.mark.parametrize("model", ["idle", str(require_embedded_model())])
def test_stages_are_measured_and_add_up_to_the_step(model: str) -> None:
    """Steps whose tokens the model draws, and others."""
    seen = set()
    for sampling in (Sampling(temperature=0.0), Sampling(temperature=0.0, presence_penalty=0.5)):
        core = overhead.create_core(model, 4, 512, 40)
        seen |= _check_stages(core, sampling)
    assert seen == {name for _, _, name in overhead.STAGES} | {overhead.KERNELS}


def _check_stages(core: EngineCore, sampling: Sampling) -> set[str]:
    step_ms, stages = overhead.measure(core, 4, 20, sampling)
    assert all(ms > 0.0 for ms in stages.values()), stages
    assert sum(stages.values()) > 0.1 * step_ms, "most is measured nowhere"  # other steps, which may find busier cores
    return set(stages)


def test_table_has_a_column_per_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model idle --batch 2 --vocab 64 --steps 5 --sampling greedy --sampling any"
    assert overhead.main(words.split()) == 0
    table = capsys.readouterr().out
    assert "2 rows, vocabulary 64" in table
    assert table.splitlines()[1].split() == ["greedy", "any"]
