"""The shelf: what is kept is found again, what another user could have written is not, and it stays within its size."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from kea.kernels.shelf import Shelf, user_shelf


def test_what_was_written_is_found_by_another_process_of_the_user(tmp_path: Path) -> None:
    Shelf(tmp_path / "a" / "b", 100).write("one", b"content")
    assert Shelf(tmp_path / "a" / "b", 100).try_read("one") == b"content"
    assert Shelf(tmp_path / "a" / "b", 100).try_read("other") is None
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", 25)
    for age, name in ((300, "old"), (200, "older but read"), (100, "young")):
        shelf.write(name, b"12345678")
        os.utime(tmp_path / "shelf" / name, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "shelf" / "older but read", (1e9 - 400, 1e9 - 400))
    assert shelf.try_read("older but read") == b"12345678"
    shelf.write("new", b"12345678")
    assert sorted(path.name for path in (tmp_path / "shelf").iterdir()) == ["new", "older but read", "young"]
    shelf.write("too large for the shelf", b"1" * 26)
    assert shelf.try_read("too large for the shelf") is None
    assert shelf.try_read("new") == b"12345678"


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_not_believed(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shelf"
    Shelf(folder, 100).write("one", b"planted")
    folder.chmod(mode)
    shelf = Shelf(folder, 100)
    with caplog.at_level(logging.WARNING):
        assert shelf.try_read("one") is None
        assert shelf.try_read("one") is None
        shelf.write("two", b"content")
    assert sorted(path.name for path in folder.iterdir()) == ["one"]
    assert len(caplog.records) == 1
    assert f"others may write to {folder} (mode {mode:o})" in caplog.text


def test_a_folder_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Shelf(tmp_path / "shelf", 100).write("one", b"planted")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert Shelf(tmp_path / "shelf", 100).try_read("one") is None
    assert "belongs to another user" in caplog.text


def test_a_link_in_place_of_the_folder_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Shelf(tmp_path / "elsewhere", 100).write("one", b"planted")
    (tmp_path / "shelf").symlink_to(tmp_path / "elsewhere")
    assert Shelf(tmp_path / "shelf", 100).try_read("one") is None
    assert "is not a folder" in caplog.text


def test_where_nothing_can_be_written_that_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    shelf = Shelf(tmp_path / "file" / "shelf", 100)
    shelf.write("one", b"content")
    shelf.write("two", b"content")
    assert shelf.try_read("one") is None
    assert len(caplog.records) == 1
    assert "Nothing is kept for later starts" in caplog.text


def test_a_file_that_goes_while_it_is_read_is_just_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(tmp_path / "shelf", 100)
    shelf.write("one", b"content")

    def look_and_lose(folder: Path) -> None:
        (folder / "one").unlink()

    with monkeypatch.context() as patched:
        patched.setattr("kea.kernels.shelf.check_private", look_and_lose)
        assert shelf.try_read("one") is None
    shelf.write("two", b"content")
    assert shelf.try_read("two") == b"content"
    assert not caplog.records


def test_a_user_without_a_home_has_no_shelf(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_path: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(refuse))
    assert user_shelf("a name of this test", 100) is None
    assert "Could not determine home directory" in caplog.text


def test_writers_and_readers_at_once_see_whole_files(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(8)]
    found: list[bytes | None] = []

    def work(content: bytes) -> None:
        shelf = Shelf(tmp_path / "shelf", 15_000)
        for _ in range(20):
            shelf.write("one", content)
            found.append(shelf.try_read("one"))

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert set(found) <= {*contents, None}
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["one"]
