"""The lean decoder: one forward for the common decoder shape, driven by a spec read from the model's config."""

from kea.models.lean.decoder import LeanDecoder
from kea.models.lean.spec import DecoderSpec, try_read_spec
from kea.models.lean.weights import fuse_weights, round_weights

__all__ = ["DecoderSpec", "LeanDecoder", "fuse_weights", "round_weights", "try_read_spec"]
