"""The two trace formats, in small files written here and in the recorded ones where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.bench.load.traces import TraceEntry, read_trace
from kea.errors import InvalidRequest
from tests.conftest import require_shared

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.0000000,0,9
2023-11-16 18:15:50.9951690,396,109
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 2500, "input_length": 700, "output_length": 6, "hash_ids": [0, 2]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_azure(tmp_path: Path) -> None:
    first, second = read_trace(write(tmp_path, AZURE), 10)
    assert first == TraceEntry(0.0, 374, 44)
    # The request without a prompt between them is left out.
    assert (second.input_len, second.output_len) == (396, 109)
    assert second.offset_s == pytest.approx(4.314579, abs=1e-6)


def test_mooncake(tmp_path: Path) -> None:
    entries = read_trace(write(tmp_path, MOONCAKE), 10)
    assert entries == (TraceEntry(0.0, 600, 5, (0, 1)), TraceEntry(1.5, 700, 6, (0, 2)))
    assert len(read_trace(write(tmp_path, MOONCAKE), 1)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with ''"),
        ("a,b\n1,2\n", "Azure CSV"),
        (AZURE + "yesterday,1,2\n", "line 5"),
        (AZURE + "2023-11-16 18:15:51,1\n", "line 5"),
        ("TIMESTAMP,Other\n1,2\n", "line 2"),
        (MOONCAKE + '{"timestamp": 1}\n', "line 3"),
        (MOONCAKE + "{\n", "line 3"),
        (AZURE.splitlines()[0] + "\n", "no request"),
    ],
)
def test_malformed_traces_are_refused_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_trace(write(tmp_path, text), 10)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        read_trace(tmp_path / "absent.csv", 1)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("AzureLLMInferenceTrace_conv.csv", (374, 44)),
        ("AzureLLMInferenceTrace_code.csv", (4808, 10)),
        ("mooncake_conversation_trace.jsonl", (6758, 500)),
    ],
)
def test_recorded_traces(name: str, first: tuple[int, int]) -> None:
    entries = read_trace(require_shared("data", "traces", name), 2000)
    assert len(entries) == 2000
    assert (entries[0].input_len, entries[0].output_len) == first
    assert [entry.offset_s for entry in entries] == sorted(entry.offset_s for entry in entries)
