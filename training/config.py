"""The recipe's settings: model shapes, optimisation, the mixture of data. Knows nothing of torch or files."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a Llama decoder with tied embeddings; every engine that loads Llama can load it."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    max_len: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """Muon for the matrices of the layers, AdamW for embeddings and norms; one schedule for both."""

    muon_lr: float = 0.004
    adam_lr: float = 0.004
    muon_momentum: float = 0.95
    adam_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warmup_steps: int = 40


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the rows of a batch hold: the share of language rows, and how hard each token counts."""

    language_share: float = 0.06
    story_share: float = 0.25
    chat_share: float = 0.5
    streaming_share: float = 0.06
    answer_weight: float = 4.0
    context_weight: float = 0.05


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run: what is trained, how, and on what."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mixture: Mixture = field(default_factory=Mixture)
    tokens_per_step: int = 4096
    loss_share: float = 0.375  # of a step's tokens have a loss, the heaviest first
    seed: int = 7
    sink_token: bool = False
    sink_share: float = 0.0  # of the attention that heads are pushed to pay to the first token; 0: no push
    sink_weight: float = 0.1  # of the push in the loss


HELD_OUT_BOOKS = ("eliot-romola", "collins-the-woman-in-white", "clausewitz-on-war")
