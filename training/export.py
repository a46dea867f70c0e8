"""Writes a run's weights as a model directory that transformers (and every engine that reads its layout) loads.

    python -m training.export --run .train/plain --out src/kea/models/embedded

Knows nothing of how the weights were trained; the model card is written by training.card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from training.command_line import in_one_sentence, need_files
from training.config import ModelConfig, Recipe
from training.tokenizer import BOS, END, EOS, PAD, load_tokenizer, save_tokenizer, token_id

MAX_BYTES = 16_000_000


def llama_config(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Return config.json of a Llama; fp32 is the dtype to compute in, whatever the file holds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_len,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": token_id(tokenizer, BOS),
        "eos_token_id": stop_ids(tokenizer),
        "pad_token_id": token_id(tokenizer, PAD),
    }


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer: of plain text, and of a turn in a chat."""
    return [token_id(tokenizer, EOS), token_id(tokenizer, END)]


def export(run: Path, out: Path, model: ModelConfig) -> None:
    """Write config, fp16 weights and tokenizer into `out`; refuse weights that are too large for the repository."""
    tokenizer = load_tokenizer(run)
    save_tokenizer(tokenizer, out, model.max_len)
    write_json(out / "config.json", llama_config(model, tokenizer))
    generation = {name: llama_config(model, tokenizer)[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    write_json(out / "generation_config.json", {f"{name}_token_id": value for name, value in generation.items()})
    weights = load_file(run / "master.safetensors")
    halves = {f"model.{name}": weight.to(torch.float16) for name, weight in weights.items()}
    num_bytes = sum(weight.numel() * 2 for weight in halves.values())
    if num_bytes > MAX_BYTES:
        raise ValueError(f"the weights take {num_bytes} bytes in fp16; at most {MAX_BYTES} are allowed")
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON with a line break at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    arguments = parser.parse_args()
    with in_one_sentence():
        need_files(arguments.run, ("master.safetensors", "tokenizer.json"), "the folder of a run")
        export(arguments.run, arguments.out, Recipe().model)
        print(f"wrote a model directory into {arguments.out}")


if __name__ == "__main__":
    main()
