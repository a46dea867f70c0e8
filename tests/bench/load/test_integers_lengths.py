"""Spellings of numbers and of laws of lengths, and that the laws draw what they say."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest

from kea.bench.integers import parse_bytes, parse_integer
from kea.bench.load.lengths import Fixed, Lognormal, Uniform, parse_lengths
from kea.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("512", 512), ("32k", 32_000), ("32K", 32_768), ("1.5m", 1_500_000), ("1,000", 1000), ("2_000", 2000),
     ("0.5K", 512), ("1G", 2**30)],
)  # fmt: skip
def test_integers(text: str, value: int) -> None:
    assert parse_integer(text, "x") == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "1.0001k", "32kb", "1e3", "many", "1 k"])
def test_integers_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="input-len") as caught:
        parse_integer(text, "input-len")
    assert caught.value.param == "input-len"


@pytest.mark.parametrize(
    ("text", "value"),
    [("4GiB", 2**32), ("4 GiB", 2**32), ("4GB", 4 * 10**9), ("1.5MiB", 3 * 2**19), ("100kB", 100_000), ("64b", 64),
     ("4G", 2**32), ("4g", 4 * 10**9), ("1,000", 1000)],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text, "x") == value


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4TiB", "4iB", "0.3b", "four GiB", "1e9"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="kv-memory") as caught:
        parse_bytes(text, "kv-memory")
    assert caught.value.param == "kv-memory"


def test_laws_are_read() -> None:
    assert parse_lengths("1k", "x") == Fixed(1000)
    assert parse_lengths("uniform:128:1K", "x") == Uniform(128, 1024)
    assert parse_lengths("lognormal:512:0.8", "x") == Lognormal(512, 0.8)


@pytest.mark.parametrize("text", ["512", "uniform:128:1024", "lognormal:512:0.8"])
def test_a_law_spells_itself(text: str) -> None:
    assert str(parse_lengths(text, "x")) == text


@pytest.mark.parametrize(
    "text",
    ["0", "uniform:5", "uniform:9:5", "uniform:0:5", "lognormal:5", "lognormal:5:x", "lognormal:5:-1", "gamma:1:2"],
)
def test_laws_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_lengths(text, "output-len")


def test_laws_draw_what_they_say() -> None:
    rng = Random(3)
    assert {Fixed(7).draw(rng) for _ in range(5)} == {7}
    uniform = [Uniform(2, 5).draw(rng) for _ in range(2000)]
    assert set(uniform) == {2, 3, 4, 5}
    assert statistics.fmean(uniform) == pytest.approx(3.5, abs=0.1)
    lognormal = [Lognormal(200, 0.5).draw(rng) for _ in range(4000)]
    assert statistics.median(lognormal) == pytest.approx(200, rel=0.05)
    assert statistics.stdev([math.log(length) for length in lognormal]) == pytest.approx(0.5, rel=0.05)
    assert min(Lognormal(1, 5.0).draw(rng) for _ in range(500)) == 1
