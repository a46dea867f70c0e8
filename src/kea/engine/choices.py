"""The tokens of a batch, chosen: known at once on a CPU, on their way on a device. Knows no requests, no text.

On a device nothing is waited for until the tokens are read, and they can go into the next forward before that. A row
whose draw is not settled there is drawn again when it is read; what was computed of its first token is then worthless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kea.engine.drawing import DrawRows, Noise, draw_tokens
from kea.engine.drawing_ahead import draw_ahead
from kea.engine.transfer import Fetched, send_index
from kea.types import Sampling


class Choice(Protocol):
    """The token of each row [R]. Lives until the rows' generations have taken theirs."""

    @property
    def tokens(self) -> torch.Tensor:
        """The tokens [R] int64 where the logits are, without waiting; of no meaning where a row gave none."""
        ...

    @property
    def late(self) -> Sequence[int]:
        """The rows whose token is not the one of `tokens`; known once it was read."""
        ...

    def read(self) -> list[int | None]:
        """Wait for the tokens; None where no logit is finite or one is not a number."""
        ...


class KnownChoice:
    """Tokens that are known."""

    def __init__(self, token_ids: list[int | None]) -> None:
        self._token_ids = token_ids
        self.late: Sequence[int] = ()

    @property
    def tokens(self) -> torch.Tensor:
        return torch.tensor([0 if token_id is None else token_id for token_id in self._token_ids], dtype=torch.int64)

    def read(self) -> list[int | None]:
        return self._token_ids


class ChoiceAhead:
    """Tokens chosen on a device that is not waited for: read in one transfer, and one more for rows not settled.

    `random` are the rows of `draws`, whose logits stay as they are until the tokens are read.
    """

    def __init__(
        self, tokens: torch.Tensor, best: torch.Tensor, is_settled: torch.Tensor, random: list[int], draws: DrawRows
    ) -> None:
        self.tokens = tokens
        self.late: Sequence[int] = ()
        self._random = random
        self._draws = draws
        self._fetched = Fetched(torch.stack([tokens, best.isfinite().long(), is_settled]))

    def read(self) -> list[int | None]:
        chosen, sound, settled = self._fetched.tolist()
        late = [place for place, row in enumerate(self._random) if sound[row] and not settled[row]]
        if late:
            with torch.inference_mode():
                again = draw_tokens(self._draws.take(late))
            self.late = [self._random[place] for place in late]
            for row, token_id in zip(self.late, again, strict=True):
                chosen[row] = token_id
        return [token_id if is_sound else None for token_id, is_sound in zip(chosen, sound, strict=True)]


def choose_ahead(logits: torch.Tensor, samplings: Sequence[Sampling], noise: Sequence[Noise]) -> ChoiceAhead:
    """Choose a token of each row of the logits [R, V] fp32, which may be overwritten as soon as this is computed."""
    best, best_ids = logits.max(dim=-1)  # the first of equal ones
    random = [row for row, sampling in enumerate(samplings) if not sampling.is_greedy]
    token_ids, is_settled = best_ids.clone(), torch.ones_like(best_ids)
    draws = DrawRows(logits, best, samplings, noise).take(random)
    if random:
        if draws.logits is logits and any(s.top_k > 0 or s.top_p < 1.0 for s in samplings):
            draws = DrawRows(logits.clone(), best, samplings, noise)  # some row may have to be drawn again
        index = send_index(random, logits.device)
        own_ids, own_settled = draw_ahead(draws)
        token_ids[index], is_settled[index] = own_ids, own_settled.long()
    return ChoiceAhead(token_ids, best, is_settled, random, draws)
