"""Makes the first token of rows an attention sink: a start from which training goes on.

    python -m training.sink --run .train/plain --data DIR --share 0.3

A sink is what heads look at when they have nothing to say (Xiao et al., 2024, section 3.1). Runs of this recipe are too
short to grow one (and Muon is known to keep models from the outliers that go with it), so it is installed: in every
layer the first token, whose hidden state is always the same, gets a key along the mean query of each head and the
value zero, as in the "zero sink" of Xiao et al., table 3. Training then decides what becomes of it. Knows no task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import Recipe
from training.corpus import load_corpus
from training.data import RowMaker
from training.model import Attention, Llama, rotary_tables, rotate
from training.tokenizer import load_tokenizer

NUM_ROWS = 8
SKIPPED = 16  # the first positions, where the share of any token is large
MAX_KEY_LEN = 100.0
RIDGE = 1e-3
BISECTIONS = 40


@torch.no_grad()
def install_sink(model: Llama, rows: Tensor, share: float) -> None:
    """Edit keys and values of every layer so that queries of `rows` [N, T] pay `share` to the first token on average.

    The other values grow by 1 / (1 - share), so that what a head writes stays about the same. Raises ValueError for a
    model whose heads share keys: one key cannot lie along several mean queries.
    """
    if model.config.num_heads != model.config.num_kv_heads:
        raise ValueError(
            f"num_kv_heads is {model.config.num_kv_heads}; a sink needs as many as heads: {model.config.num_heads}"
        )
    cos, sin = rotary_tables(model.config, rows.shape[1], rows.device)
    for layer, x in model.attention_inputs(rows):
        edit_attention(layer.self_attn, x, cos, sin, share)


def edit_attention(attention: Attention, x: Tensor, cos: Tensor, sin: Tensor, share: float) -> None:
    """Give the first token of the normed inputs `x` [N, T, D] its key and value."""
    first, head_dim = x[0, 0], attention.config.head_dim
    queries, keys = (heads_of(proj(x), cos, sin, head_dim) for proj in (attention.q_proj, attention.k_proj))
    others = logsumexp_of_others(queries, keys)[:, :, SKIPPED:]
    queries = queries[:, :, SKIPPED:]
    direction = torch.nn.functional.normalize(queries.mean((0, 2)), dim=-1)  # [H, head_dim]
    along = torch.einsum("nhtd,hd->nht", queries, direction) * head_dim**-0.5
    length, reached = key_lengths(along, others, share)
    wanted = (direction * length[:, None]).flatten()
    selector = selector_of(first, x[:, 1:].flatten(0, 1))
    attention.k_proj.weight.add_(torch.outer(wanted - attention.k_proj(first), selector))
    attention.v_proj.weight.sub_(torch.outer(attention.v_proj(first), selector))
    attention.v_proj.weight.div_((1 - reached).repeat_interleave(head_dim)[:, None])


def heads_of(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:
    """Return projections [N, T, H * head_dim] as rotated heads [N, H, T, head_dim]."""
    return rotate(x.view(*x.shape[:2], -1, head_dim).transpose(1, 2), cos, sin)


def selector_of(first: Tensor, others: Tensor) -> Tensor:
    """Return the vector [D] whose product with `first` is one and with `others` [M, D] is smallest on average.

    The rank-one edit of Meng et al., 2022 (ROME), equation 2: one key changes, what the rest maps to hardly does.
    """
    moment = others.mT @ others / len(others)
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(first))
    selector: Tensor = torch.linalg.solve(moment, first)
    return selector / selector.dot(first)


def logsumexp_of_others(queries: Tensor, keys: Tensor) -> Tensor:
    """Return [N, H, T]: the logarithm of the attention weights' sum before norming, without the first token's."""
    length = queries.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[1:, 0] = False
    logits = (queries @ keys.mT) * queries.shape[-1] ** -0.5
    return torch.logsumexp(logits.masked_fill(~seen, -torch.inf), -1)


def key_lengths(along: Tensor, others: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the length [H] of keys that get `share` on average from queries of these lengths along them, by bisection.

    Also the share that each head reaches: less, where the longest allowed key does not suffice.
    """
    low = torch.zeros(along.shape[1])
    high = torch.full_like(low, MAX_KEY_LEN)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_much = torch.sigmoid(along * middle[:, None] - others).mean((0, 2)) > share
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return low, torch.sigmoid(along * low[:, None] - others).mean((0, 2))


def main() -> None:
    """Install a sink as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run, which is changed")
    parser.add_argument("--data", type=Path, required=True, help="folder with books/ and tinystories.txt")
    parser.add_argument("--share", type=float, default=0.3, help="of the attention that the first token gets")
    parser.add_argument("--sink-token", action="store_true", help="rows begin with a sink token")
    arguments = parser.parse_args()
    recipe = Recipe()
    tokenizer = load_tokenizer(arguments.run)
    corpus = load_corpus(arguments.data, tokenizer, arguments.run)
    rows = RowMaker(tokenizer, corpus, recipe.mixture, recipe.seed, arguments.sink_token)
    model = Llama(recipe.model)
    model.load_state_dict(load_file(arguments.run / "master.safetensors"))
    install_sink(model, torch.from_numpy(rows.batch(NUM_ROWS, recipe.model.max_len).ids), arguments.share)
    save_file(model.state_dict(), arguments.run / "master.safetensors")


if __name__ == "__main__":
    main()
