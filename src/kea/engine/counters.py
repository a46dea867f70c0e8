"""What the engine did since its start, in numbers. Knows no requests."""

from __future__ import annotations


class Counters:
    """Lives as long as its engine. `num_steps`: forward passes; of a burst, every round is one."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_finished: dict[str, int] = {}

    def finished(self, reason: str) -> None:
        self.num_finished[reason] = self.num_finished.get(reason, 0) + 1
