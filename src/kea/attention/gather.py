"""The backend `torch`: gathers the pages of similar contexts into dense tensors and calls torch's own attention.

Runs wherever torch runs. What does not depend on the layer (indices, masks) is computed once per step, per window. Owns
two buffers that the gathered keys and values of one layer live in. Knows no requests, no models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from kea.attention.base import LayerCache, LayerSpec, StepPlan, check_unpinned
from kea.attention.tiles import Tile, plan_tiles
from kea.errors import Unsupported


@dataclass(frozen=True, slots=True)
class DenseTile:
    """A tile on the device: rows (a slice where they are consecutive), pages [B * P], additive mask [B, Q, P * page].

    `blind` [B, Q] marks queries that see no key; None where there is none.
    """

    rows: slice | torch.Tensor
    num_blocks: int
    num_queries: int
    pages: torch.Tensor
    mask: torch.Tensor
    blind: torch.Tensor | None


class Workspace:
    """Two growing buffers, reused by every layer and step: allocating them afresh costs more than filling them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def gather(self, name: str, source: torch.Tensor, pages: torch.Tensor, page_tokens: int) -> torch.Tensor:
        """Copy the `pages` [N] of `source` [slots, KV, D] into the buffer `name`; return it as [N, page, KV, D]."""
        paged = source[: source.shape[0] // page_tokens * page_tokens].view(-1, page_tokens, *source.shape[1:])
        shape = (pages.shape[0], *paged.shape[1:])
        key = (name, source.dtype, source.device)
        size = pages.shape[0] * paged[0].numel()
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = source.new_empty(size)
        return torch.index_select(paged, 0, pages, out=buffer[:size].view(shape))


class GatherPlan:
    """One step's tiles by window, made when the first layer of that window asks."""

    def __init__(self, plan: StepPlan, workspace: Workspace) -> None:
        self._plan = plan
        self._workspace = workspace
        self._tiles: dict[tuple[int | None, torch.dtype], list[DenseTile]] = {}

    def attend(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        *,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not cache.keys.dtype.is_floating_point:
            raise Unsupported(f"The backend 'torch' does not read keys and values in {cache.keys.dtype}.")
        cache.keys.index_copy_(0, self._plan.slots, key.to(cache.keys.dtype))
        cache.values.index_copy_(0, self._plan.slots, value.to(cache.values.dtype))
        output = query.new_empty(query.shape[0], spec.num_heads, spec.value_dim)
        for tile in self._tiles_of(spec.window, query.dtype):
            output[tile.rows] = self._attend_tile(spec, query[tile.rows], cache, tile, sinks)
        return output

    def _tiles_of(self, window: int | None, dtype: torch.dtype) -> list[DenseTile]:
        tiles = self._tiles.get((window, dtype))
        if tiles is None:
            device = self._plan.slots.device
            planned = plan_tiles(self._plan.sequences, self._plan.page_tokens, window)
            tiles = [dense_tile(tile, self._plan.page_tokens, dtype, device) for tile in planned]
            self._tiles[window, dtype] = tiles
        return tiles

    def _attend_tile(
        self, spec: LayerSpec, query: torch.Tensor, cache: LayerCache, tile: DenseTile, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        query = query.view(tile.num_blocks, tile.num_queries, spec.num_heads, spec.key_dim).transpose(1, 2)
        keys = self._gather("keys", cache.keys, tile, query.dtype)
        values = self._gather("values", cache.values, tile, query.dtype)
        if spec.softcap is None and sinks is None:
            result = _attend_plain(spec, query, keys, values, tile.mask)
        else:
            result = _attend_explicit(spec, query, keys, values, tile.mask, sinks=sinks)
        if tile.blind is not None:
            result = result.masked_fill(tile.blind[:, None, :, None], 0.0)
        return result.transpose(1, 2).reshape(-1, spec.num_heads, spec.value_dim)

    def _gather(self, name: str, source: torch.Tensor, tile: DenseTile, dtype: torch.dtype) -> torch.Tensor:
        paged = self._workspace.gather(name, source, tile.pages, self._plan.page_tokens)
        return paged.view(tile.num_blocks, -1, *source.shape[1:]).transpose(1, 2).to(dtype)  # [B, KV, L, D]


def dense_tile(tile: Tile, page_tokens: int, dtype: torch.dtype, device: torch.device) -> DenseTile:
    """Move a tile to `device` and write its mask out: 0 where the query sees the key, -inf elsewhere."""
    visible = _visible(tile, page_tokens, device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))
    return DenseTile(
        rows=_row_selector(tile.rows, device),
        num_blocks=tile.pages.shape[0],
        num_queries=tile.num_queries,
        pages=torch.from_numpy(tile.pages.ravel()).to(device),
        mask=mask,
        blind=~visible.any(-1) if tile.may_be_blind else None,
    )


def _visible(tile: Tile, page_tokens: int, device: torch.device) -> torch.Tensor:
    """Return [B, Q, P * page] bool."""

    def per_key(field: object) -> torch.Tensor:  # [B, P] -> [B, 1, P * page]
        return torch.as_tensor(field).to(device).repeat_interleave(page_tokens, dim=1)[:, None]

    offset = torch.arange(page_tokens, device=device).repeat(tile.base.shape[1])
    position = per_key(tile.base) + offset
    in_run = (position >= per_key(tile.lo)) & (position < per_key(tile.hi))
    query = torch.from_numpy(tile.first).to(device)[:, None] + torch.arange(tile.num_queries, device=device)
    behind = query[:, :, None] - position
    return in_run & (behind >= 0) & (behind <= per_key(tile.reach))


def _row_selector(rows: tuple[int, ...], device: torch.device) -> slice | torch.Tensor:
    if rows == tuple(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _attend_plain(
    spec: LayerSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attend from [B, H, Q, Dk] by torch's own function; a single query per block carries its group as its rows."""
    group = spec.num_heads // spec.num_kv_heads
    if query.shape[2] == 1:
        packed = query.reshape(query.shape[0], spec.num_kv_heads, group, spec.key_dim)
        result = scaled_dot_product_attention(packed, keys, values, attn_mask=mask[:, None], scale=spec.scale)
        return result.reshape(query.shape[0], spec.num_heads, 1, spec.value_dim)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask[:, None], scale=spec.scale, enable_gqa=group > 1
    )


def _attend_explicit(
    spec: LayerSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    *,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from [B, H, Q, Dk] with what torch's function lacks: a cap on the logits, a logit in the denominator."""
    blocks, _, num_queries, _ = query.shape
    heads = (blocks, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, num_queries)
    packed = query.reshape(blocks, spec.num_kv_heads, -1, spec.key_dim)
    logits = torch.matmul(packed, keys.transpose(2, 3)).float().view(*heads, -1).mul_(spec.scale)
    if spec.softcap is not None:
        logits.div_(spec.softcap).tanh_().mul_(spec.softcap)
    logits.add_(mask[:, None, None])
    lse = torch.logsumexp(logits, dim=-1, keepdim=True)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().view(1, heads[1], heads[2], 1, 1))
    weights = logits.sub_(lse).exp_().to(values.dtype).view(blocks, spec.num_kv_heads, -1, logits.shape[-1])
    return torch.matmul(weights, values).view(blocks, spec.num_heads, num_queries, spec.value_dim)


class GatherAttention:
    """The backend `torch`. Padding and block shapes depend on the batch, so a row's last bits do too."""

    name = "torch"
    batch_invariant = False

    def __init__(self) -> None:
        self._workspace = Workspace()

    def prepare(self, plan: StepPlan) -> GatherPlan:
        check_unpinned(plan, self.name)
        return GatherPlan(plan, self._workspace)
