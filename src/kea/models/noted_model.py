"""A load of our own decoder without transformers, where an earlier load had its code compute what is to come out.

Noted are the layers, the rotary frequencies, a checksum of each weight and the logits of two texts
(`probe.eager_logits`). The decoder is made of the weights in the files and must compute these logits, as it must
compute those of transformers' code in a load without a note, and the weights must be those that were noted: logits
alone would be believed of a checkpoint that was trained a little further. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kea.attention.base import LayerSpec, Rotary
from kea.errors import ModelLoadFailed
from kea.models.notes import Note, NotesOf
from kea.models.rotary import Frequencies
from kea.models.stored import stored_shapes
from kea.models.stored_model import StoredModel

KIND = "load"
EXPECTED = "expected"
FREQUENCIES = "frequencies"

Settings = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a load found out: `expected` are the logits [2, N, V] of transformers' own code.

    `is_tied`: the output matrix is the embedding's. `sums`: what `StoredModel.sums` gives, once it was noted.
    """

    layers: tuple[LayerSpec, ...]
    rotary: Mapping[str | None, Frequencies]
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    is_tied: bool
    expected: torch.Tensor
    sums: Mapping[str, str] = field(default_factory=dict)


def note_finding(found: Finding, directory: Path, settings: Settings, notes: NotesOf) -> None:
    """Note it for a directory's checkpoint as it is. `settings`: those of the load on which it depends."""
    stored = StoredModel(directory)
    if not stored.is_readable:  # weights in no safetensors, or of types that transformers converts
        return
    facts = {
        "layers": [asdict(layer) for layer in found.layers],
        "rotary": [(kind, one.scale, one.layout) for kind, one in found.rotary.items()],
        "eos_token_ids": found.eos_token_ids,
        "num_parameters": found.num_parameters,
        "is_tied": found.is_tied,
        "shapes": stored_shapes(directory),
        "sums": stored.sums(),
    }
    arrays = {EXPECTED: found.expected.numpy()}
    for index, one in enumerate(found.rotary.values()):
        arrays[f"{FREQUENCIES} {index}"] = one.values.numpy()
    notes.write(Note(facts, arrays), KIND, *settings)


def try_read_finding(directory: Path, settings: Settings, notes: NotesOf) -> Finding | None:
    """Return what was noted, where the checkpoint's files have the same weights, by names, types and shapes."""
    note = notes.try_read(KIND, *settings)
    if note is None or note.facts["shapes"] != stored_shapes(directory):
        return None
    rotary = {
        kind: Frequencies(torch.from_numpy(note.arrays[f"{FREQUENCIES} {index}"]), scale, layout)
        for index, (kind, scale, layout) in enumerate(note.facts["rotary"])
    }
    return Finding(
        layers=tuple(map(_layer, note.facts["layers"])),
        rotary=rotary,
        eos_token_ids=tuple(note.facts["eos_token_ids"]),
        num_parameters=note.facts["num_parameters"],
        is_tied=note.facts["is_tied"],
        expected=torch.from_numpy(note.arrays[EXPECTED]),
        sums=note.facts["sums"],
    )


def check_weights(stored: StoredModel, found: Finding) -> None:
    """Raise `ModelLoadFailed` unless a checkpoint's weights, now that they were read, are those that were noted."""
    sums = stored.sums()
    changed = sorted(name for name in sums.keys() | found.sums.keys() if sums.get(name) != found.sums.get(name))
    if changed:
        raise ModelLoadFailed(f"{len(changed)} weights have changed, such as {changed[0]}.", param="model")


def _layer(facts: dict[str, Any]) -> LayerSpec:
    rotary = facts.pop("rotary")
    if rotary is not None:
        rotary = Rotary(**{**rotary, "frequencies": tuple(rotary["frequencies"])})
    return LayerSpec(**facts, rotary=rotary)
