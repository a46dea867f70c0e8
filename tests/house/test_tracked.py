"""The check of tracked files finds what belongs to one machine only. Planted strings are put together here, so that
this file does not name them itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.check_tracked import MAX_FILE_BYTES, check_tracked, find_own_places


def plant(root: Path, content: str | bytes, name: str = "notes.md") -> list[str]:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [str(finding) for finding in check_tracked(root)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("see " + "/ho" + "me/alice/kea/x.py", "names somebody's home directory"),
        ("see " + "/Us" + "ers/alice", "names somebody's home directory"),
        ("C:" + "\\Users\\alice", "names somebody's home directory"),
        ("cd " + "/ro" + "ot/x", "names root's home directory"),
        ("index = " + "file:" + "///srv/simple", "names a file of one machine"),
        ("key = s" + "k-" + "a1" * 12, "looks like a secret key"),
        ("-----BEGIN " + "RSA PRIVATE KEY-----", "holds a private key"),
        ("<" * 7 + " HEAD", "is a leftover of a merge"),
        ("pip install --index" + "-url https://pypi.example/simple torch", "installs from https://pypi.example/simple"),
        ("pip install --find" + "-links=/wheels torch", "installs from /wheels"),
    ],
)
def test_a_planted_line_is_found_with_its_place(tmp_path: Path, line: str, expected: str) -> None:
    found = [message for message in plant(tmp_path, f"first\n{line}\n") if expected in message]
    assert len(found) == 1
    assert found[0].startswith("notes.md:2: ")


@pytest.mark.parametrize(
    "line",
    [
        "/ho" + "me/you/models",
        "docs/ho" + "me/page.md and http://example.org/ho" + "me/x",
        "pip install --index" + "-url https://download.pytorch.org/whl/cpu torch",
        "-" * 40 + " or " + "=" * 7,
        "ask-me-anything-about-the-longest-hyphenated-words",
    ],
)
def test_ordinary_lines_are_left_alone(tmp_path: Path, line: str) -> None:
    assert plant(tmp_path, line) == []


def test_this_machine_is_found_out_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/alice")
    assert "/data/people/alice/" in find_own_places(tmp_path)
    found = plant(tmp_path, "the model lies in /data/people/alice/models\n")
    assert found == [
        "notes.md:1: names a folder of this machine (/data/people/alice/); write it relative to the project."
    ]


def test_common_folders_are_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert find_own_places(Path("/tmp/kea")) == []


def test_a_large_file_is_found_and_a_binary_one_is_not_read(tmp_path: Path) -> None:
    assert plant(tmp_path, b"\0" * MAX_FILE_BYTES, "weights.bin") == []
    found = plant(tmp_path, b"\0" * (MAX_FILE_BYTES + 1), "weights.bin")
    assert found == ["weights.bin: has 16,777,217 bytes; the limit for a file in the repository is 16,777,216."]


def test_ignored_files_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("notes.md\n")
    assert plant(tmp_path, "/ho" + "me/alice/x") == []


def test_outside_a_checkout_it_says_so(tmp_path: Path) -> None:
    (found,) = check_tracked(tmp_path / "nowhere")
    assert "git cannot list the files of this checkout" in found.message
