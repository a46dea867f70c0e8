"""Whole numbers as people write them: 32k, 1.5M, 4GiB. Knows nothing of what is counted."""

from __future__ import annotations

import re

from kea.errors import InvalidRequest

# Small letters are decimal, capitals binary, as in vLLM's flags: 32k is 32,000 and 32K is 32,768.
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_NUMBER = r"(\d[\d_,]*(?:\.\d+)?)"
_SPELLING = re.compile(_NUMBER + r"([kmgKMG]?)")
# Sizes name their factor in full, as every tool that shows memory does: MB is 10**6 and MiB is 2**20.
_SIZE_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE_SPELLING = re.compile(_NUMBER + r" ?([kmg]?i?)b", re.IGNORECASE)


def parse_integer(text: str, param: str) -> int:
    """Read a whole number such as 512, 1,000, 32k (32,000) or 32K (32,768); `param` names it in an error."""
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(
            f"{param} is {text!r}; it must be a whole number such as 512, 32k (32,000) or 32K (32,768).", param=param
        )
    return _whole(match[1], _FACTORS[match[2]], text, param)


def parse_bytes(text: str, param: str) -> int:
    """Read a number of bytes: 512MiB, 4GiB, 4GB (10**9), or any spelling of `parse_integer`."""
    match = _SIZE_SPELLING.fullmatch(text.strip())
    if match is not None and match[2].lower() in _SIZE_FACTORS:
        return _whole(match[1], _SIZE_FACTORS[match[2].lower()], text, param)
    try:
        return parse_integer(text, param)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{param} is {text!r}; it must be a number of bytes such as 512MiB, 4GiB or 4GB.", param=param
        ) from error


def _whole(digits: str, factor: int, text: str, param: str) -> int:
    value = float(digits.replace(",", "").replace("_", "")) * factor
    if value != int(value):
        raise InvalidRequest(f"{param} is {text!r}, which is no whole number.", param=param)
    return int(value)
