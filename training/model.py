"""A Llama decoder in plain torch, named as transformers names its weights. Knows nothing of data or optimisers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ModelConfig

SHARE_STRIDE = 16
SHARE_QUERIES = 16  # of a stretch whose mean attention is told: 256 tokens


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 whatever the dtype of its input."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output [B, T, D] and the attention that each head pays to the first token [H, N]."""
        shape = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (proj(x).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.config.num_heads != self.config.num_kv_heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        y: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return y, first_token_shares(q, k)


class MLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        attended, shares = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + attended
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y, shares


class Llama(nn.Module):
    """The decoder up to its final norm; the embedding matrix is also the output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal init of width**-0.5; what writes to the residual stream starts at zero."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif name.startswith("embed"):
                nn.init.normal_(weight, std=0.02)
            else:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Return final hidden states [B, T, D] of token ids [B, T]."""
        return self.hidden_and_shares(ids)[0]

    def hidden_and_shares(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return final hidden states, and the attention of each head to the first token [L, H, N]."""
        cos, sin = rotary_tables(self.config, ids.shape[1], ids.device)
        x = self.embed_tokens(ids)
        shares: list[Tensor] = []
        for layer in self.layers:
            x, own = layer(x, cos, sin)
            shares.append(own)
        return self.norm(x), torch.stack(shares)

    def loss(self, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean cross-entropy in nats; `targets` and `weights` are [B, T]."""
        return weighted_loss(self(ids).flatten(0, 1), self.embed_tokens.weight, targets.flatten(), weights.flatten())


def weighted_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy over tokens, each with its weight; softmax in fp32."""
    logits = (hidden @ head.t()).float()
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    losses = logits.logsumexp(-1) - chosen
    return (losses * weights).sum() / weights.sum()


def first_token_shares(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention that each head pays to the first token, as a mean over stretches of each row [H, N].

    `q` [B, H, T, head_dim] and `k` are rotated. One query in SHARE_STRIDE is computed: fused attention keeps none.
    """
    sampled = q[:, :, SHARE_STRIDE - 1 :: SHARE_STRIDE]
    logits = (sampled @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT).float() * q.shape[-1] ** -0.5
    keys = torch.arange(k.shape[2], device=k.device)
    hidden = keys > keys[SHARE_STRIDE - 1 :: SHARE_STRIDE, None]
    shares = logits.masked_fill(hidden, -torch.inf).softmax(-1)[..., 0]
    stretches = [stretch.mean(-1) for stretch in shares.split(SHARE_QUERIES, -1)]
    return torch.stack(stretches, -1).transpose(0, 1).flatten(1)


def sink_penalty(shares: Tensor, target: float) -> Tensor:
    """Return how far heads are from paying `target` of their attention to the first token, in nats.

    `shares` is [L, H, N]. The logarithm of a mean moves most where a head has little else to look at, so a head that
    searches may go on searching. The first layer is left alone: it looks at neighbours in models with sinks, too.
    """
    return (math.log(target) - shares[1:].log()).relu().mean()


def rotary_tables(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin [T, head_dim / 2] in fp32 for positions 0 .. length - 1."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device) / config.head_dim
    phases = torch.arange(length, dtype=torch.float64, device=device)[:, None] * config.rope_theta**-exponent
    return phases.cos().float(), phases.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, H, T, head_dim] by position, halves paired as in transformers' Llama."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
