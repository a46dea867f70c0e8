"""Plans a step for the backend `triton`, from contexts or from what they share, once per window. No tensors but slots.

Owns nothing beyond the step. Knows no device, no layers' weights.
"""

from __future__ import annotations

from kea.attention.base import SequencePlan, StepPlan, has_pinned
from kea.attention.sharing import SharingCosts, SharingPlanner
from kea.attention.triton_work import Budget, Stretches, Work, WorkKey, from_segments, from_sequences, plan_work

# Reckoned, not measured: a program's start takes as long as reading some 64 tokens, a part is written and read again,
# and the rows of a block cost next to nothing while memory is the bound.
SHARING_COSTS = SharingCosts(segment=64.0, row=4.0, product=0.005)


class StepWork:
    """Plans one step for one kind of layer after the other; what does not depend on the kind is found once."""

    def __init__(self, plan: StepPlan, sharing: SharingPlanner) -> None:
        self._plan = plan
        self._num_rows = sum(sequence.num_queries for sequence in plan.sequences)
        self._tree = sharing.tree(plan.sequences, plan.page_tokens) if has_sharing(plan.sequences) else None
        self._stretches: dict[int | None, Stretches] = {}

    def plan(self, key: WorkKey, budget: Budget) -> Work:
        stretches = self._stretches.get(key.window)
        if stretches is None:
            stretches = self._stretches[key.window] = self._make_stretches(key.window)
        return plan_work(stretches, self._num_rows, key, budget)

    def _make_stretches(self, window: int | None) -> Stretches:
        if self._tree is None:
            return from_sequences(self._plan.sequences, window)
        return from_segments(self._tree.segments(window, SHARING_COSTS), self._plan.page_tokens)


def has_sharing(sequences: tuple[SequencePlan, ...]) -> bool:
    """Say whether two contexts begin with the same page; where none do, there is nothing to find.

    Nor is it looked for where runs are pinned: their queries are turned, each by its own angle.
    """
    if has_pinned(sequences):
        return False
    firsts = [sequence.page_table[0] for sequence in sequences if sequence.page_table and sequence.page_table[0] >= 0]
    return len(set(firsts)) < len(firsts)


def is_simple(sequences: tuple[SequencePlan, ...]) -> bool:
    """Say whether every block of the step is a small one: single queries of contexts that share nothing."""
    return all(sequence.num_queries == 1 for sequence in sequences) and not has_sharing(sequences)
