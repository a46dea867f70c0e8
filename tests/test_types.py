"""Values are checked where they are made: what one request asks for must not be able to hold up a step of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kea.errors import InvalidRequest
from kea.types import MAX_STOP_CHARS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS, MAX_TOKEN_ID, Sampling, Stopping

TOO_MUCH: dict[str, tuple[str, Callable[[], object]]] = {
    "a stop token that no index can hold": ("stop_token_ids", lambda: Stopping(8, stop_token_ids=(2**70,))),
    "a stop token below 0": ("stop_token_ids", lambda: Stopping(8, stop_token_ids=(-1,))),
    "too many stop tokens": ("stop_token_ids", lambda: Stopping(8, stop_token_ids=(1,) * (MAX_STOP_TOKEN_IDS + 1))),
    "too many stop strings": ("stop", lambda: Stopping(8, stop=("a",) * (MAX_STOP_STRINGS + 1))),
    "too long a stop string": ("stop", lambda: Stopping(8, stop=("a" * (MAX_STOP_CHARS + 1),))),
    "an empty stop string": ("stop", lambda: Stopping(8, stop=("a", ""))),
    "a top_k that no float can hold": ("top_k", lambda: Sampling(top_k=10**400)),
    "a temperature that is no number": ("temperature", lambda: Sampling(temperature=float("nan"))),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_a_step_could_not_bear_is_refused_by_name(case: str) -> None:
    param, create = TOO_MUCH[case]
    with pytest.raises(InvalidRequest) as refusal:
        create()
    assert refusal.value.param == param
    assert param in str(refusal.value)


def test_the_bounds_themselves_are_allowed() -> None:
    ids = (MAX_TOKEN_ID,) * MAX_STOP_TOKEN_IDS
    stopping = Stopping(8, stop=("a" * MAX_STOP_CHARS,), stop_token_ids=ids)
    assert stopping.stop_token_ids == ids
    assert Stopping(8, stop=("a",) * MAX_STOP_STRINGS).stop[0] == "a"
    assert Sampling(top_k=2**63 - 1).top_k == 2**63 - 1
