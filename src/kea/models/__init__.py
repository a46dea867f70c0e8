"""Models: loading, the decoder's contract, tokenizers. Importing this imports neither torch nor transformers."""

from kea.models.base import CapturingDecoder, DecoderModel, ModelFacts, StepInput
from kea.models.describing import ModelDescription, describe_model
from kea.models.detokenizer import Detokenizer
from kea.models.loading import load_model
from kea.models.notes import Notes, user_notes
from kea.models.progress import LoadProgress, ProgressCallback
from kea.models.shipped import EMBEDDED_NAME, embedded_model_path, require_embedded_model
from kea.models.source import read_default_sampling
from kea.models.tokenizer import Tokenizer

__all__ = [
    "EMBEDDED_NAME",
    "CapturingDecoder",
    "DecoderModel",
    "Detokenizer",
    "LoadProgress",
    "ModelDescription",
    "ModelFacts",
    "Notes",
    "ProgressCallback",
    "StepInput",
    "Tokenizer",
    "describe_model",
    "embedded_model_path",
    "load_model",
    "read_default_sampling",
    "require_embedded_model",
    "user_notes",
]
