"""Makes a Llama of any shape with random weights on a device, bound and proven as a loaded one, without files."""

from __future__ import annotations

import torch

from kea.attention.triton_gpu import TritonAttention
from kea.models.hosted import HostedDecoder
from kea.models.lean.triton_decoder import TritonDecoder
from kea.models.limits import Limits
from kea.models.loading import Order, _bind_and_prove

KV_HEADS = 8
VOCAB = 32_000
MAX_LEN = 16_384


def create_llama(
    shape: dict[str, int], device: str, *, hosted: bool = False
) -> tuple[HostedDecoder | TritonDecoder, TritonAttention]:
    """Return the decoder in bfloat16 and its attention; `shape` as transformers' `LlamaConfig` names it. `hosted`:
    run by transformers' code.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    heads = min(KV_HEADS, shape["num_attention_heads"])
    config = LlamaConfig(
        **shape, num_key_value_heads=heads, vocab_size=VOCAB, max_position_embeddings=MAX_LEN, tie_word_embeddings=False
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    backend = TritonAttention()
    order = Order(
        source=".",
        dtype=torch.bfloat16,
        device=device,
        revision=None,
        limits=Limits(MAX_LEN, use_long_rope=False, position_rows=None),
        allow_pickle=False,
        may_be_lean=False,
        may_be_triton=not hosted,
        may_capture=False,
        quantize=None,
        kv_dtype=torch.bfloat16,
    )
    decoder = _bind_and_prove(model, backend, order, notes=None)
    assert isinstance(decoder, HostedDecoder if hosted else TritonDecoder)
    return decoder, backend
