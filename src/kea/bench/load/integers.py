"""Whole numbers as people write them: 32k, 1.5M. Knows nothing of what is counted."""

from __future__ import annotations

import re

from kea.errors import InvalidRequest

# Small letters are decimal, capitals binary, as in vLLM's flags: 32k is 32,000 and 32K is 32,768.
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_SPELLING = re.compile(r"(\d[\d_,]*(?:\.\d+)?)([kmgKMG]?)")


def parse_integer(text: str, param: str) -> int:
    """Read a whole number such as 512, 1,000, 32k (32,000) or 32K (32,768); `param` names it in an error."""
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(
            f"{param} is {text!r}; it must be a whole number such as 512, 32k (32,000) or 32K (32,768).", param=param
        )
    value = float(match[1].replace(",", "").replace("_", "")) * _FACTORS[match[2]]
    if value != int(value):
        raise InvalidRequest(f"{param} is {text!r}, which is no whole number.", param=param)
    return int(value)
