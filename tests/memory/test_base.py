from __future__ import annotations

import subprocess
import sys

import pytest

from kea.errors import InvalidRequest
from kea.memory import MemoryConfig


@pytest.mark.parametrize(("num_pages", "page_tokens", "key"), [(0, 16, "num_pages"), (8, 0, "page_tokens")])
def test_config_names_the_key_and_the_value(num_pages: int, page_tokens: int, key: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{key} is 0; it must be at least 1") as caught:
        MemoryConfig(num_pages, page_tokens)
    assert caught.value.param == key


def test_memory_imports_neither_torch_nor_clocks() -> None:
    code = "import sys, kea.memory; sys.exit(bool({'torch', 'transformers', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
