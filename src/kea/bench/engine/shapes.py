"""Models of random weights, made on the spot: the shapes, their checkpoints, and what a step of them must read and
compute. Imports torch and tokenizers where a checkpoint is written.
"""

from __future__ import annotations

import json
import math
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kea.bench.engine.base import Precision
from kea.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

_FORMAT = 1  # of the cache: raise it when the bytes written change
_STD = 0.02
_BLOCK_NUMEL = 1 << 26  # of a tensor that is larger, the numbers repeat: drawing 8 billion takes minutes
_BYTES = {Precision.BF16: 2.0, Precision.F16: 2.0, Precision.F32: 4.0, Precision.INT8: 1.0}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers have a Llama's matrices, from which the bounds are reckoned."""
FIRST_WORD = 259  # token ids below are specials and bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama. `kv_token_bytes` and all counts follow from it."""

    name: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    head_dim: int = 64
    is_tied: bool = True
    max_len: int = 8192

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Every matrix product of a layer, as (N, K), in the order of the layer."""
        own, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            (own + 2 * kv, self.hidden),
            (self.hidden, own),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )

    @property
    def num_product_weights(self) -> int:
        """Weights that a step reads once: all layers' and the head's."""
        return self.num_layers * sum(n * k for n, k in self.matrices) + self.vocab_size * self.hidden

    @property
    def num_parameters(self) -> int:
        norms = (2 * self.num_layers + 1) * self.hidden
        return self.num_product_weights + norms + (0 if self.is_tied else self.vocab_size * self.hidden)

    @property
    def kv_token_values(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def kv_value_bytes(self, kv_cache_dtype: str) -> float:
        """Return the bytes of a value of Kea's KV; in 8 bits, each head of a token has a scale in fp32."""
        return {"float16": 2.0, "bfloat16": 2.0, "int8": 1.0 + 4.0 / self.head_dim}.get(kv_cache_dtype, 4.0)

    def weight_bytes(self, precision: Precision) -> float:
        """Bytes that a step reads of the weights, the scales of int8 left out."""
        return self.num_product_weights * _BYTES[precision]

    def attention_flops(self, num_pairs: float) -> float:
        """Return the operations of so many query-key pairs: a product with the key and one with the value."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim * num_pairs

    def config(self, dtype: str) -> dict[str, Any]:
        """Return the checkpoint's `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_len,
            "tie_word_embeddings": self.is_tied,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": dtype,
            "torch_dtype": dtype,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("25m", 8, 384, 1024, 6, 2, 8192),
        Shape("100m", 30, 576, 1536, 9, 3, 8192),
        Shape("360m", 32, 960, 2560, 15, 5, 49152),
        Shape("1b", 16, 2048, 8192, 32, 8, 128_256, max_len=16_384),
        Shape("8b", 32, 4096, 14_336, 32, 8, 128_256, head_dim=128, is_tied=False, max_len=16_384),
    )
}


def read_shape(path: Path) -> Shape:
    """Read the shape of a Llama checkpoint in a directory. Raises InvalidRequest where it is none.

    Of another family, a step's bounds would be reckoned from matrices that it does not have.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] not in FAMILIES:
            raise ValueError(f"its model_type is {config['model_type']}; allowed: {', '.join(FAMILIES)}")
        num_heads = config["num_attention_heads"]
        return Shape(
            name=path.name,
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads", num_heads),
            vocab_size=config["vocab_size"],
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            is_tied=config.get("tie_word_embeddings", False),
            max_len=config["max_position_embeddings"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = ", ".join(SHAPES)
        raise InvalidRequest(
            f"model is {str(path)!r}, which is neither a known shape ({known}) nor a directory with the config of a"
            f" Llama: {_spell(error)}.",
            param="model",
        ) from error


def _spell(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"its config.json cannot be read ({error.strerror})"
    return f"its config.json has no {error}" if isinstance(error, KeyError) else str(error)


def make_checkpoint(shape: Shape, dtype: str, cache: Path) -> Path:
    """Return a checkpoint of random weights in `dtype` (bfloat16, float16 or float32), written once into the cache."""
    folder = cache / f"{shape.name}-{dtype}-{_FORMAT}"
    if not (folder / "made").exists():
        making = folder.with_name(folder.name + ".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        write_checkpoint(shape, dtype, making)
        (making / "made").touch()
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    return folder


def write_checkpoint(shape: Shape, dtype: str, folder: Path) -> None:
    """Write config, weights (one seed, so the same everywhere) and a tokenizer with that vocabulary."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    kind: torch.dtype = getattr(torch, dtype)

    def draw(*size: int) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=kind)
        numel = math.prod(size)
        if numel <= _BLOCK_NUMEL:
            return (torch.randn(size, generator=generator) * _STD).to(kind)
        block = (torch.randn(_BLOCK_NUMEL, generator=generator) * _STD).to(kind)
        return block.repeat(-(-numel // _BLOCK_NUMEL))[:numel].view(size)

    save_file(dict(_tensors(shape, draw)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.config(dtype), indent=1), encoding="utf-8")
    write_tokenizer(shape.vocab_size, folder)


def _tensors(shape: Shape, draw: Callable[..., torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    own, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", draw(shape.vocab_size, shape.hidden)
    for number in range(shape.num_layers):
        layer = f"model.layers.{number}."
        yield layer + "self_attn.q_proj.weight", draw(own, shape.hidden)
        yield layer + "self_attn.k_proj.weight", draw(kv, shape.hidden)
        yield layer + "self_attn.v_proj.weight", draw(kv, shape.hidden)
        yield layer + "self_attn.o_proj.weight", draw(shape.hidden, own)
        yield layer + "mlp.gate_proj.weight", draw(shape.intermediate, shape.hidden)
        yield layer + "mlp.up_proj.weight", draw(shape.intermediate, shape.hidden)
        yield layer + "mlp.down_proj.weight", draw(shape.hidden, shape.intermediate)
        yield layer + "input_layernorm.weight", draw(shape.hidden)
        yield layer + "post_attention_layernorm.weight", draw(shape.hidden)
    yield "model.norm.weight", draw(shape.hidden)
    if not shape.is_tied:
        yield "lm_head.weight", draw(shape.vocab_size, shape.hidden)


def write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Write a tokenizer of Llama's kind: bytes, then letters, then all pairs and triples of them by merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges: list[tuple[str, str]] = []
    letters = ["\u2581", *string.ascii_lowercase]
    words += letters
    stems = letters
    while len(words) < vocab_size:
        wanted = math.ceil((vocab_size - len(words)) / len(letters))
        pairs = [(stem, letter) for stem in stems[:wanted] for letter in letters[1:]]
        pairs = pairs[: vocab_size - len(words)]
        merges += pairs
        stems = [stem + letter for stem, letter in pairs]
        words += stems
    vocab = {word: index for index, word in enumerate(words[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 8192,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
