"""The model seam: what the engine asks of a decoder. Knows attention's types, no requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kea.attention.base import LayerCache, LayerSpec, StepPlan

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


QUANTIZATIONS = ("int8",)
KV_CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded decoder is. `max_len`: the positions it may use, in tokens. `kv_token_bytes`: KV of one token.

    `kv_dtype`: how KV are kept, see `kea.attention.storage`.
    `quantize`: what the weights were rounded to (None: they are the checkpoint's).
    """

    name: str
    family: str
    vocab_size: int
    max_len: int
    layers: tuple[LayerSpec, ...]
    eos_token_ids: tuple[int, ...]
    kv_token_bytes: int
    num_parameters: int
    device: str
    dtype: str
    kv_dtype: str
    backend: str
    batch_invariant: bool
    quantize: str | None = None


@dataclass(frozen=True, slots=True)
class StepInput:
    """The flattened batch of one step: [T] token ids and positions, the [R] rows whose logits are wanted, the plan."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    logit_rows: torch.Tensor  # [R] int64
    plan: StepPlan


class DecoderModel(Protocol):
    """A decoder on one device, stateless between steps: its KV lives in the cache passed in."""

    @property
    def facts(self) -> ModelFacts: ...

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        """Allocate the KV memory: one `LayerCache` of `num_slots` slots per layer."""
        ...

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        """Write the step's KV into `cache` and return the logits [R, V] fp32 of `logit_rows`, valid until the next
        forward.
        """
        ...


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """How the next tokens of the R contexts of a decode step are drawn.

    `settings` [R, 4] and `noise` [R, 2]: as `kea.kernels.draws` has them; the noise is that of the first tokens.
    """

    settings: NDArray[np.float64]
    noise: NDArray[np.uint64]


NO_TOKEN, SPOILT_TOKEN = -1, -2
"""Instead of a drawn token: of a row whose logits were not finite; whose keys or values were not, then or before."""


class Decoding(Protocol):
    """R contexts that go on, a token at a time, by what they draw. Good until the model computes anything else."""

    def try_extend(self, row: int, index: int, page: int) -> bool:
        """Let entry `index` of a context's page table be `page`; False where there is no room for more of them."""
        ...

    def run(self, num_rounds: int) -> NDArray[np.int64]:
        """Compute so many steps, each behind the tokens that the one before drew.

        Returns the tokens [num_rounds, R], good until the next call; below 0 where there is none: what follows in that
        row means nothing. The page tables must have the pages of all rounds, of which nothing is hidden or shared.
        """
        ...


@runtime_checkable
class DrawingDecoder(DecoderModel, Protocol):
    """A decoder that can draw tokens itself, and go on to them without a return."""

    @property
    def can_draw(self) -> bool: ...

    def begin(self, step: StepInput, cache: tuple[LayerCache, ...], order: DrawOrder) -> Decoding:
        """Get ready for a decode step, one row for each context, and all that follow it."""
        ...


@runtime_checkable
class CapturingDecoder(DecoderModel, Protocol):
    """A decoder that prepares itself for small steps over one cache, by capturing them as CUDA graphs."""

    def capture(self, cache: tuple[LayerCache, ...], page_tokens: int, max_rows: int) -> None:
        """Get ready for steps of up to `max_rows` rows over this cache; the cache's content may change."""
        ...
