"""The weights of a checkpoint, reached by the names that transformers' modules give them. Knows no families.

They are read into large pages when they are asked for: to map the file took a second for 222 MB, most of it spent in
the system, which maps small pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kea.kernels.arena import Arena
from kea.models.stored import StoredWeight, read_header, weight_files

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class StoredModel:
    """A checkpoint's files as a transformers model has them: `model.layers[0].self_attn.q_proj.weight`, and so on.

    Every access to a weight reads it. Raises `AttributeError` for one that is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._root = _Node()
        for file in weight_files(directory):
            for name, weight in read_header(file).items():
                self._root.add(name.split("."), (file, weight))

    @property
    def model(self) -> Any:
        return self._root.model

    def get_input_embeddings(self) -> Any:
        return self._root.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        """The output matrix; where it is the embedding's, nobody may ask for its weight."""
        return _Node() if "lm_head" not in self._root else self._root.lm_head


class _Node:
    """A module: its children by name, or by number, and its weights."""

    def __init__(self) -> None:
        self._children: dict[str, _Node | tuple[Path, StoredWeight]] = {}

    def add(self, path: list[str], weight: tuple[Path, StoredWeight]) -> None:
        if len(path) == 1:
            self._children[path[0]] = weight
            return
        child = self._children.setdefault(path[0], _Node())
        if isinstance(child, _Node):
            child.add(path[1:], weight)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._children:
            raise AttributeError(f"The checkpoint has no {name} here; there are: {', '.join(self._children)}.")
        child = self._children[name]
        return child if isinstance(child, _Node) else _read(*child)

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def __iter__(self) -> Any:
        return (getattr(self, name) for name in sorted(self._children, key=int))


def _read(file: Path, weight: StoredWeight) -> torch.Tensor:
    if weight.dtype not in DTYPES:
        raise ValueError(f"weights of type {weight.dtype} in {file}; read are {', '.join(DTYPES)}")
    values = Arena().zeros((weight.stop - weight.start,), np.uint8)
    with file.open("rb", buffering=0) as stream:
        stream.seek(weight.start)
        taken = 0
        while taken < len(values):
            count = stream.readinto(values[taken:].data)
            if not count:
                raise OSError(f"{file} ended while it was read")
            taken += count
    return torch.from_numpy(values).view(DTYPES[weight.dtype]).view(weight.shape)
