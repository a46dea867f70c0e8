"""Looks at every file that is committed or about to be: no machine's names, no secrets, nothing half-merged or huge.

What belongs to this machine is found out at run time (the home directory, the folder that holds the checkout), so
that no such name stands here either.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.findings import Finding, run_check

MAX_FILE_BYTES = 16 * 1024 * 1024
PUBLIC_INDEXES = ("https://pypi.org/", "https://download.pytorch.org/")
EXAMPLE_USERS = "you|me|user|username|example"

PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"(?<![\w.~/])/(?:home|Users)/(?!(?:{EXAMPLE_USERS})\b)\w[\w.-]*"), "names somebody's home directory"),
    (re.compile(r"(?<![\w.~/])/(?:root)/"), "names root's home directory"),
    (re.compile(r"\b[A-Z]:\\Users\\\w+"), "names somebody's home directory"),
    (re.compile(r"file:///\w+"), "names a file of one machine"),
    (
        re.compile(r"\b(?:sk-[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"),
        "looks like a secret key",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "holds a private key"),
    (re.compile(r"^(?:<{7} |>{7} )"), "is a leftover of a merge"),
)
INDEX_OPTION = re.compile(r"--?(?:extra-)?(?:index-url|find-links|trusted-host)[ =]+[\"']?(?P<where>\S+)")


def check_tracked(root: Path) -> list[Finding]:
    """Return every tracked or addable file that is too large, and every line that names what it should not."""
    try:
        paths = _list_files(root)
    except (OSError, subprocess.CalledProcessError) as error:
        return [Finding(".", 0, f"git cannot list the files of this checkout: {error}")]
    own_places = find_own_places(root)
    findings: list[Finding] = []
    for path in paths:
        findings += _check_file(root, path, own_places)
    return findings


def find_own_places(root: Path) -> list[str]:
    """Return the folders of this machine that no file should name: the home directory and the checkout's parent.

    Folders that are common to all machines (/, /tmp and its like) are left out.
    """
    common = {"/", "/tmp", "/home", "/opt", "/srv", "/usr", "/var", tempfile.gettempdir()}
    places = {str(Path.home()), str(root.resolve().parent)}
    return sorted(f"{place}/" for place in places - common if not place.startswith("/tmp/"))


def _list_files(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in listed.split("\0") if path and (root / path).is_file())


def _check_file(root: Path, path: str, own_places: list[str]) -> Iterator[Finding]:
    content = (root / path).read_bytes()
    if len(content) > MAX_FILE_BYTES:
        yield Finding(
            path, 0, f"has {len(content):,} bytes; the limit for a file in the repository is {MAX_FILE_BYTES:,}."
        )
    if b"\0" in content[:8192]:
        return
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        for complaint in _complaints(line, own_places):
            yield Finding(path, number, complaint)


def _complaints(line: str, own_places: list[str]) -> Iterator[str]:
    for pattern, complaint in PATTERNS:
        if pattern.search(line):
            yield f"{complaint}; take it out or make it relative."
    for place in own_places:
        if place in line:
            yield f"names a folder of this machine ({place}); write it relative to the project."
    option = INDEX_OPTION.search(line)
    if option and not option["where"].startswith((*PUBLIC_INDEXES, "$", "{")):
        yield f"installs from {option['where']}; only public indexes may be named ({', '.join(PUBLIC_INDEXES)})."


if __name__ == "__main__":
    sys.exit(run_check("tracked files", check_tracked))
