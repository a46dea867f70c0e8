"""Every command's help: it is there, its options are explained, its examples parse, and its flags stay."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from kea.cli.app import app
from tools.commands import CommandTree, load_commands

TREE = load_commands()

ENGINE = {"--device", "--dtype", "--kv-cache-dtype", "--kv-memory", "--max-model-len", "--num-threads", "--quantize"}
SAMPLING = {"--max-tokens", "--seed", "--stop", "--temperature", "--top-k", "--top-p"}
WHERE = {"--api-key", "--url"}
FLAGS = {
    "kea": {"--verbose", "-v", "--version"},
    "kea chat": {"--system", *ENGINE, *SAMPLING, *WHERE},
    "kea complete": {*ENGINE, *SAMPLING, *WHERE},
    "kea demo": {"--copy", "--json"},
    "kea doctor": set[str](),
    "kea models": {"--dtype", "--json"},
    "kea run": {"--json", "--model", "--quiet", "-q", *ENGINE, *WHERE},
    "kea serve": {
        "--allowed-hosts", "--allowed-origins", "--api-key", "--chat-template", "--functions",
        "--generation-config", "--ssl-certfile", "--ssl-keyfile",
        "--host", "--insecure", "--json-ready", "--max-body-bytes", "--max-burst-ms", "--max-session-bytes-per-key",
        "--max-num-batched-tokens", "--max-num-seqs", "--max-pending-calls-per-key", "--max-requests-per-key",
        "--max-sessions-per-key", "--no-parrot-routes", "--num-speculative-tokens", "--port",
        "--prompt-lookup-max", "--prompt-lookup-min", "--reasoning-parser", "--revision", "--served-model-name",
        "--session-idle-s", "--session-lease-s", "--shutdown-grace-s", "--tool-call-parser", "--tpot-objective-ms",
        *ENGINE,
    },
}  # fmt: skip


def walk(command: CommandTree) -> Iterator[CommandTree]:
    yield command
    for child in command.commands.values():
        yield from walk(child)


COMMANDS = [command for command in walk(TREE) if not command.name.startswith("kea bench")]


def examples_of(command: CommandTree) -> list[str]:
    return [line.strip() for line in command.help.splitlines() if line.strip().startswith("kea ")]


@pytest.mark.parametrize("command", [command.name for command in walk(TREE)])
def test_help_is_shown(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split()[1:], "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "Usage: kea" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert re.search(r"<(bool|list\[str\])>", result.output) is None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_is_explained(command: CommandTree) -> None:
    assert command.help
    assert [option.names for option in command.options if not option.help] == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_have_commands_and_options_that_exist(command: CommandTree) -> None:
    examples = examples_of(command)
    assert examples or command.name in {"kea", "kea doctor"}
    problems = [problem for line in examples for problem in TREE.complain(shlex.split(line)[1:])]
    assert problems == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_flags_are_permanent(command: CommandTree) -> None:
    flags = {name for option in command.options for name in option.names if name.startswith("-")}
    assert flags - {"--help"} == FLAGS[command.name]


def test_the_short_list_of_commands() -> None:
    assert list(TREE.commands) == ["demo", "serve", "run", "chat", "complete", "models", "doctor", "bench"]


def test_the_help_of_serve_tells_how_it_ends() -> None:
    words = " ".join(next(command.help for command in COMMANDS if command.name == "kea serve").split())
    assert "Ctrl-C or SIGTERM stops it" in words
    assert "Exit status: 0 stopped, 130 interrupted before it was ready, 1 failed" in words
