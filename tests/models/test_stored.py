"""What stands in a file of weights, and what is said of one that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.errors import ModelLoadFailed
from kea.models.stored import read_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2200119864\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (POINTER, "it is a pointer of Git LFS, `git lfs pull` gets the file"),
        (b"<html><body>not found</body></html>", "it begins b'<html><body>not found</'"),
        (b"\x0c\0\0\0\0\0\0\0[1, 2, 3, 4]", "is not a safetensors file: "),
        (b"\x20\0\0\0\0\0\0\0{", "is not a safetensors file: "),
    ],
)
def test_what_a_file_is_instead_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelLoadFailed) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file} is not a safetensors file: ")
    assert said in str(caught.value)
