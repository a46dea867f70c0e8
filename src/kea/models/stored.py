"""Weights in safetensors files: which files a directory has, and what their headers say. Knows no models, no tensors.

The format: 8 bytes of length, little-endian, the header in JSON, then the values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kea.errors import ModelLoadFailed
from kea.models.source import FILES_HINT

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight in a file: its type as safetensors names it, its shape, and the bytes [start, stop) that it takes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def weight_files(directory: Path) -> list[Path]:
    """Return the files that are loaded, as transformers chooses them; all of them where it would choose none."""
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelLoadFailed(f"{index} is not an index of safetensors: {error}.", hint=FILES_HINT) from error
    return [directory / name for name in sorted(names)]


def stored_shapes(directory: Path) -> dict[str, list[Any]]:
    """Return the type and the shape of each weight in a directory's files, by its name, as JSON has them.

    Raises as `read_header` does.
    """
    headers = map(read_header, weight_files(directory))
    return {name: [weight.dtype, list(weight.shape)] for header in headers for name, weight in header.items()}


def read_header(file: Path) -> dict[str, StoredWeight]:
    """Return what a file holds, by name.

    Raises `ModelLoadFailed` where the file is of another format, or ends before its last value.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES or length == 0:
                raise ValueError(_what_it_is(file))
            header = json.loads(stream.read(length))
        begin = HEADER_LENGTH_BYTES + length
        weights = {name: _weight(facts, begin) for name, facts in header.items() if name != "__metadata__"}
        num_bytes = max((weight.stop for weight in weights.values()), default=begin)
        found_bytes = file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelLoadFailed(f"{file} is not a safetensors file: {error}.", hint=FILES_HINT, param="model") from error
    if found_bytes < num_bytes:
        raise ModelLoadFailed(
            f"{file} is cut off: it has {found_bytes:,} of {num_bytes:,} bytes.", hint=FILES_HINT, param="model"
        )
    return weights


def _what_it_is(file: Path) -> str:
    """Say what a file is that does not begin as safetensors do: mostly one that was cloned without Git LFS."""
    with file.open("rb") as stream:
        begin = stream.read(len(LFS_POINTER))
    if not begin:
        return "it is empty"
    return (
        "it is a pointer of Git LFS, `git lfs pull` gets the file" if begin == LFS_POINTER else f"it begins {begin!r}"
    )


def _weight(facts: dict[str, Any], begin: int) -> StoredWeight:
    start, stop = facts["data_offsets"]
    return StoredWeight(str(facts["dtype"]), tuple(map(int, facts["shape"])), begin + int(start), begin + int(stop))
