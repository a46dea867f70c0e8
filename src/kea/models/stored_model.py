"""The weights of a checkpoint, reached by the names that transformers' modules give them. Knows no families.

They are read into large pages when they are asked for: to map the file took a second for 222 MB, most of it spent in
the system, which maps small pages.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kea.kernels.arena import Arena
from kea.models.stored import StoredWeight, read_header, weight_files

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BLOCK_BYTES = 4096
"""What a checksum adds up before it is hashed: so it is had at the speed of memory, 7 GB/s where sha256 has 1."""


class StoredModel:
    """A checkpoint's files as a transformers model has them: `model.layers[0].self_attn.q_proj.weight`, and so on.

    Every access to a weight reads it, on any thread. Raises `AttributeError` for one that is not there.
    """

    def __init__(self, directory: Path) -> None:
        files = [(file, read_header(file)) for file in weight_files(directory)]
        self._weights = {name: _Weight(file, weight) for file, header in files for name, weight in header.items()}
        self._root = _Node()
        for name, stored in self._weights.items():
            self._root.add(name.split("."), stored)

    @property
    def is_readable(self) -> bool:
        """Whether there are weights, all of types that are read."""
        return bool(self._weights) and all(weight.stored.dtype in DTYPES for weight in self._weights.values())

    def sums(self) -> dict[str, str]:
        """Return a checksum of the values of each weight, by name, as it was read last; others are read for it."""
        return {name: weight.sum() for name, weight in self._weights.items()}

    @property
    def model(self) -> Any:
        return self._root.model

    def get_input_embeddings(self) -> Any:
        return self._root.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        """The output matrix; where it is the embedding's, nobody may ask for its weight."""
        return _Node() if "lm_head" not in self._root else self._root.lm_head


class _Weight:
    """One weight in a file, and the checksum of what was read."""

    def __init__(self, file: Path, stored: StoredWeight) -> None:
        self.stored = stored
        self._file = file
        self._sum: str | None = None

    def sum(self) -> str:
        return self._sum or _checksum(self._read())

    def read(self) -> torch.Tensor:
        if self.stored.dtype not in DTYPES:
            raise ValueError(f"weights of type {self.stored.dtype} in {self._file}; read are {', '.join(DTYPES)}")
        values = self._read()
        self._sum = _checksum(values)
        return torch.from_numpy(values).view(DTYPES[self.stored.dtype]).view(self.stored.shape)

    def _read(self) -> NDArray[np.uint8]:
        values = Arena().zeros((self.stored.stop - self.stored.start,), np.uint8)
        with self._file.open("rb", buffering=0) as stream:
            stream.seek(self.stored.start)
            taken = 0
            while taken < len(values):
                count = stream.readinto(values[taken:].data)
                if not count:
                    raise OSError(f"{self._file} ended while it was read")
                taken += count
        return values


class _Node:
    """A module: its children by name, or by number, and its weights."""

    def __init__(self) -> None:
        self._children: dict[str, _Node | _Weight] = {}

    def add(self, path: list[str], weight: _Weight) -> None:
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
        return child if isinstance(child, _Node) else child.read()

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def __iter__(self) -> Any:
        return (getattr(self, name) for name in sorted(self._children, key=int))


def _checksum(values: NDArray[np.uint8]) -> str:
    """Return a checksum that any change gives another one, but for words that change places within a block, and changes
    of a block that cancel out.
    """
    num_whole = len(values) // BLOCK_BYTES * BLOCK_BYTES
    blocks = values[:num_whole].view(np.uint64).reshape(-1, BLOCK_BYTES // 8).sum(axis=1, dtype=np.uint64)
    digest = hashlib.sha256(blocks.data)
    digest.update(values[num_whole:].data)
    return digest.hexdigest()[:32]
