"""Commands of the recipe tell a mistake in one sentence, stop at the first interrupt, and keep tokenizers apart."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.command_line import Mistake, in_one_sentence
from training.config import HELD_OUT_BOOKS
from training.corpus import check_data, load_corpus
from training.tokenizer import encode, train_tokenizer
from training.train import check_length, stop_on_signals

BOOK = "A Title\n-------\nThe old clock in the hall struck nine. Nobody in the house had slept well.\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data with one book besides those that are held out."""
    (tmp_path / "books").mkdir()
    for name in (*HELD_OUT_BOOKS, "a-book"):
        (tmp_path / "books" / f"{name}.txt").write_text(BOOK)
    (tmp_path / "tinystories.txt").write_text("<|endoftext|>".join(["Once there was a boat. " * 20] * 60))
    return tmp_path


def test_data_that_lacks_a_file_is_refused_by_its_name(data: Path) -> None:
    check_data(data)
    (data / "books" / "a-book.txt").unlink()
    with pytest.raises(Mistake, match="no books but the 3 that are held out"):
        check_data(data)
    (data / "tinystories.txt").unlink()
    with pytest.raises(Mistake, match=r"it has no tinystories\.txt$"):
        check_data(data)


def test_rows_that_fit_no_step_are_refused() -> None:
    check_length(1024, 4096, 1024)
    for length, tokens_per_step in ((2048, 4096), (512, 256), (16, 4096)):
        with pytest.raises(Mistake, match=f"--length {length} "):
            check_length(length, tokens_per_step, 1024)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Mistake("no such thing"), 2, "error: no such thing\n"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "error: [Errno 2] No such file: 'x.json'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info, in_one_sentence():
        raise error
    assert (exit_info.value.code, capsys.readouterr().err) == (status, words)


def test_a_fault_of_ours_keeps_its_trace() -> None:
    with pytest.raises(ZeroDivisionError), in_one_sentence():
        raise ZeroDivisionError


def test_the_training_command_names_what_a_wrong_folder_lacks(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "training.train",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path),
        "--minutes",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not the folder of the data: it has no tinystories.txt, no ")
    assert done.stderr.count("\n") == 1


def test_the_first_interrupt_stops_a_run_and_the_second_interrupts() -> None:
    stops: list[None] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop_on_signals(SimpleNamespace(stop=lambda: stops.append(None)))  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
        assert len(stops) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_books_are_tokenised_again_for_another_tokenizer(data: Path, tokenizer: Tokenizer) -> None:
    other, cache = train_tokenizer([BOOK] * 3, 300), data / "cache"
    ours, theirs = (load_corpus(data, each, cache).books for each in (tokenizer, other))
    assert ours.tolist()[:-1] == encode(tokenizer, BOOK.split("-------")[1].strip())
    assert not np.array_equal(ours, theirs)
    assert np.array_equal(load_corpus(data, tokenizer, cache).books, ours)
    assert len(list(cache.glob("books-train-*.npy"))) == 2
