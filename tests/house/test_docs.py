"""The check of documents finds links, commands, options and examples that the project does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_docs
from tools.commands import CommandTree, Option, load_commands
from tools.markdown import walk_commands, walk_pieces

MAP = "## Folders of `src/kea`\n| `engine/` | steps |\n\n## Others\n| `tests/` | tests |\n"
PORT = Option(("--port", "-p"), "The port.", "8000", required=False, is_argument=False)
SERVE = CommandTree("kea serve", "Serve a model.", (PORT,))
BENCH_SERVE = CommandTree("kea bench serve", "Load a server.", ())
TREE = CommandTree("kea", "", (), {"serve": SERVE, "bench": CommandTree("kea bench", "", (), {"serve": BENCH_SERVE})})


@pytest.fixture(autouse=True)
def a_small_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_docs, "load_commands", lambda: TREE)


def plant(root: Path, readme: str, structures: str = MAP) -> list[str]:
    (root / "docs").mkdir(exist_ok=True)
    (root / "src/kea/engine").mkdir(parents=True, exist_ok=True)
    (root / "Makefile").write_text("demo: x ## run\n\ntest: x\n")
    (root / "README.md").write_text(readme, encoding="utf-8")
    (root / "docs/structures.md").write_text(structures, encoding="utf-8")
    return [str(finding) for finding in check_docs.check_docs(root)]


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("See [the map](docs/map.md).\n", "README.md:1: links to 'docs/map.md', which is not there."),
        (
            "\n```sh\nmake demo\nmake trial\n```\n",
            "README.md:4: names `make trial`; the Makefile's targets are demo, test.",
        ),
        ("Run `make trial`.\n", "README.md:1: names `make trial`; the Makefile's targets are demo, test."),
        ("```console\n$ kea surf\n```\n", "README.md:2: names `kea surf`; commands are bench, serve."),
        ("`kea bench surf`\n", "README.md:1: names `kea bench surf`; commands are serve."),
        ("`kea serve --prot 1`\n", "README.md:1: gives `kea serve` the option --prot; it has --help, --port, -p."),
        ("```sh\n.venv/bin/kea serve \\\n  --prot=1 # why\n```\n", "README.md:3: gives `kea serve` the option --prot;"),
        ("```python\nimport kea\nwith kea.connect(:\n```\n", "README.md:1: holds Python that does not parse (line 2"),
        ("Call `kea.conect()`.\n", "README.md:1: names kea.conect, which the package does not have."),
        (
            "```python\nimport kea\nkea.conect()\n```\n",
            "README.md:1: names kea.conect, which the package does not have.",
        ),
    ],
)
def test_a_planted_mistake_is_found(tmp_path: Path, readme: str, expected: str) -> None:
    found = plant(tmp_path, readme)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    readme = """
    [site](https://example.org/x) [top](#top) [map](docs/structures.md#life) `[not a link](gone.md)` don't `it's`
    `make test ARGS="-k engine"` `kea` `kea --help` `kea serve MODEL --port 0` `kea bench serve`
    `kea.errors` `kea.__version__`
    ```console
    $ make demo PYTHON=python3.12
    kea nonsense is output here
    ```
    ```
    make nothing: no language, no command
    ```
    """
    assert plant(tmp_path, "\n".join(line[4:] for line in readme.splitlines())) == []


@pytest.mark.parametrize(
    ("structures", "expected"),
    [
        ("nothing\n", "docs/structures.md: has no line for src/kea/engine;"),
        (
            MAP.replace("\n\n", "\n| `moon/` | x |\n\n"),
            "docs/structures.md: has a line for src/kea/moon, which is not there.",
        ),
        ("", "docs/structures.md: is missing"),
    ],
)
def test_the_map_has_a_line_per_folder(tmp_path: Path, structures: str, expected: str) -> None:
    (found,) = plant(tmp_path, "", structures)
    assert found.startswith(expected)


def test_a_command_line_that_does_not_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_docs, "load_commands", lambda: load_commands("kea.no_such_room"))
    (found,) = plant(tmp_path, "`kea surf`\n")
    assert "cannot be looked up: kea.no_such_room cannot be imported: ModuleNotFoundError: No module named" in found


def test_shapes_use_the_letters_of_the_glossary(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/glossary.md").write_text("| `T` | rows |\n| `KV` | heads |\n")
    (tmp_path / "src/kea/engine").mkdir(parents=True)
    (tmp_path / "src/kea/engine/a.py").write_text(
        "x = 1  # [T, KV, page, 2 * T]\ny = [A, B]\nz = 2  # born as [T, Hq] fp32\n"
    )
    (found,) = plant(tmp_path, "")
    assert found == "src/kea/engine/a.py:3: writes a shape with Hq, a letter that docs/glossary.md does not have."


def test_pieces_are_taken_apart_in_order() -> None:
    text = "A `span` and [a link](x.md).\n~~~~py\n```\n`inside`\n```\n~~~~\n[b](y.md)"
    pieces = [(piece.line, piece.language, piece.text) for piece in walk_pieces(text)]
    assert pieces == [(1, "span", "span"), (1, "link", "x.md"), (2, "py", "```\n`inside`\n```"), (7, "link", "y.md")]


def test_commands_lose_prompts_comments_and_continuations() -> None:
    text = "```bash\n# a comment\nkea serve \\\n  --port 0  # any\n\nmake demo\n```"
    assert list(walk_commands(text)) == [(4, "kea serve --port 0"), (6, "make demo")]
