"""Engines for tests: cores on the small trained Llama, with a page pool of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from kea.engine.config import EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.models import DecoderModel, Tokenizer, load_model
from tests.engine.driver import Driver

MakeDriver = Callable[..., Driver]


@pytest.fixture(scope="session")
def stories_model(stories260k: Path) -> DecoderModel:
    return load_model(stories260k)


@pytest.fixture(scope="session")
def stories_tokenizer(stories260k: Path) -> Tokenizer:
    return Tokenizer.load(stories260k)


@pytest.fixture(scope="session")
def stories_reference(stories260k: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(stories260k, attn_implementation="eager")


class Clock:
    """Time that passes by one millisecond at every look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


class Undrawing:
    """A model without what it can do beside a `DecoderModel`."""

    def __init__(self, model: DecoderModel) -> None:
        self.facts = model.facts
        self.create_cache = model.create_cache
        self.forward = model.forward


@pytest.fixture
def make_driver(stories_model: DecoderModel, stories_tokenizer: Tokenizer, stories260k: Path) -> MakeDriver:
    """Return a maker of drivers: `num_pages`, and any other field of `EngineConfig`.

    `can_draw` False: the sampler draws, never the model. `check` False: nobody looks at the core between two steps.
    """

    def make(num_pages: int = 256, *, can_draw: bool = True, check: bool = True, **fields: object) -> Driver:
        page_tokens = int(fields.get("page_tokens", 16))  # type: ignore[call-overload]
        fields["kv_memory_bytes"] = num_pages * page_tokens * stories_model.facts.kv_token_bytes
        config = EngineConfig(str(stories260k), **fields)  # type: ignore[arg-type]
        limits = resolve_limits(config, stories_model.facts, 0)
        model = stories_model if can_draw else Undrawing(stories_model)
        return Driver(EngineCore(model, stories_tokenizer, limits, Clock()), check=check)

    return make
