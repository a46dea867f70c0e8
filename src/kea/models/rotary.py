"""Rotary phases in double precision. Owns what replaces the forward of a model's own rotary modules, same interface.

A phase is position * frequency; formed in fp32, its error grows with the position. Here it is formed in fp64 from the
model's own frequencies, whatever scaling (linear, llama3, YaRN) made them. Frequencies that a model would change with
the length of the batch (dynamic NTK, longrope) are pinned, so that a row never depends on its neighbours.
Knows no requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kea.errors import Unsupported

logger = logging.getLogger(__name__)

NUM_PROBE_POSITIONS = 8
TOLERANCE = 1e-5

Layout = Callable[[torch.Tensor], torch.Tensor]

LAYOUTS: dict[str, Layout] = {
    "halves": lambda phases: torch.cat((phases, phases), dim=-1),
    "pairs": lambda phases: phases.repeat_interleave(2, dim=-1),
    "single": lambda phases: phases,
}


@dataclass(frozen=True, slots=True)
class Frequencies:
    """One set of rotary frequencies [D / 2] fp64, the factor on cos and sin, and how phases are laid out over D."""

    values: torch.Tensor
    scale: float
    layout: str


class DoubleRotary:
    """Stands in for a rotary module's forward: cos and sin of `position_ids` [B, T], each [B, T, D] in `x`'s dtype.

    One set of frequencies per layer type; None where the model has one set for all.
    """

    def __init__(self, sets: dict[str | None, Frequencies]) -> None:
        self.sets = sets

    def __call__(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self.sets[layer_type]
        phases = torch.remainder(position_ids[..., None].double() * chosen.values, 2 * torch.pi)
        phases = LAYOUTS[chosen.layout](phases.float())
        return (phases.cos() * chosen.scale).to(x.dtype), (phases.sin() * chosen.scale).to(x.dtype)


def install_double_rotary(model: torch.nn.Module, *, use_long: bool = False) -> int:
    """Give every standard rotary module of `model` a `DoubleRotary` as its forward; return how many got one.

    The model must already be on its device. `use_long` pins longrope to its long factors, not its short ones. A module
    whose output is not the cos and sin of its frequencies is left as it is, with a warning; where such a one also
    changes with the length: `Unsupported`.
    """
    num_replaced = 0
    for module in list(_rotary_modules(model)):
        sets = {layer_type: _read(module, layer_type, use_long) for layer_type in _layer_types(module)}
        known = {layer_type: found for layer_type, found in sets.items() if found is not None}
        if len(known) == len(sets):
            module.forward = DoubleRotary(known)
            num_replaced += 1
        elif any(_is_length_dependent(module, layer_type) for layer_type in sets):
            raise Unsupported(
                f"{type(module).__name__} changes its frequencies with the length of the batch in a way that is not "
                "known here; its results would depend on which requests run together.",
                param="model",
            )
        else:
            logger.warning("%s is not a standard rotary: its phases stay in single precision", type(module).__name__)
    return num_replaced


def try_double_rotary(module: torch.nn.Module) -> DoubleRotary | None:
    """Return what `install_double_rotary` gave a module, or None where it is not a standard one."""
    forward: Any = module.forward
    return forward if isinstance(forward, DoubleRotary) else None


def _rotary_modules(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    return (module for module in model.modules() if any(key.endswith("inv_freq") for key in module._buffers))


def _layer_types(module: torch.nn.Module) -> list[str | None]:
    kind: Any = getattr(module, "rope_type", "default")
    return list(kind) if isinstance(kind, dict) else [None]


def _rope_type(module: torch.nn.Module, layer_type: str | None) -> str:
    kind: Any = getattr(module, "rope_type", "default")
    return str(kind if layer_type is None else kind[layer_type])


def _is_length_dependent(module: torch.nn.Module, layer_type: str | None) -> bool:
    kind = _rope_type(module, layer_type)
    return kind == "longrope" or "dynamic" in kind


def _read(module: torch.nn.Module, layer_type: str | None, use_long: bool) -> Frequencies | None:
    """Return the module's pinned frequencies, or None where its output is not made of them as expected."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    try:
        expected = _own_output(module, layer_type, use_long)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        logger.info("%s has another interface than the standard rotary: %s", type(module).__name__, error)
        return None
    pinned = "original_inv_freq" if _is_length_dependent(module, layer_type) and not use_long else "inv_freq"
    values = getattr(module, prefix + pinned).detach().double()
    scale = float(getattr(module, f"{prefix}attention_scaling", 1.0))
    positions = torch.arange(NUM_PROBE_POSITIONS, device=values.device)[None]
    for layout in LAYOUTS:
        candidate = Frequencies(values, scale, layout)
        ours = DoubleRotary({layer_type: candidate})(expected[0], positions, layer_type)
        if all(_are_close(a, b) for a, b in zip(ours, expected, strict=True)):
            return candidate
    return None


def _own_output(module: torch.nn.Module, layer_type: str | None, use_long: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the module's own cos and sin [1, N, D] fp32 at the first positions.

    With `use_long` a position beyond the original length goes along, which makes longrope take its long factors.
    """
    buffer = next(buffer for key, buffer in module._buffers.items() if key.endswith("inv_freq") and buffer is not None)
    positions = list(range(NUM_PROBE_POSITIONS))
    if use_long and _rope_type(module, layer_type) == "longrope":
        positions.append(original_length(module, layer_type))
    position_ids = torch.tensor([positions], device=buffer.device)
    keywords = {} if layer_type is None else {"layer_type": layer_type}
    x = torch.zeros(1, 1, dtype=torch.float32, device=buffer.device)
    cos, sin = module(x, position_ids, **keywords)
    return cos[:, :NUM_PROBE_POSITIONS], sin[:, :NUM_PROBE_POSITIONS]


def original_length(module: torch.nn.Module, layer_type: str | None) -> int:
    """Return the length in tokens up to which a longrope module uses its short factors."""
    parameters: Any = module.config.rope_parameters  # type: ignore[union-attr]
    if layer_type is not None:
        parameters = parameters[layer_type]
    return int(parameters["original_max_position_embeddings"])


def _are_close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return ours.shape == expected.shape and torch.allclose(ours, expected, rtol=0.0, atol=TOLERANCE)
