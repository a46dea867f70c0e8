"""The command line of `kea` as data, read from its Typer application. Runs no command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tools.loading import load_attribute

BUILT_IN = frozenset({"--help"})


@dataclass(frozen=True, slots=True)
class Option:
    """An option or argument: its spellings, what it says of itself, and its default as shown (empty: none)."""

    names: tuple[str, ...]
    help: str
    default: str
    required: bool
    is_argument: bool


@dataclass(frozen=True, slots=True)
class CommandTree:
    """A command with its options, or a group with its commands."""

    name: str
    help: str
    options: tuple[Option, ...]
    commands: dict[str, CommandTree] = field(default_factory=dict)

    def complain(self, words: Sequence[str]) -> Iterator[str]:
        """Yield a sentence for every command and option in `words` that is not there."""
        if self.commands:
            yield from self._complain_of_command(words)
            return
        known = {name for option in self.options for name in option.names} | BUILT_IN
        for word in takewhile(lambda word: word != "--", words):
            name = word.split("=")[0]
            if name.startswith("--") and name not in known:
                yield f"gives `{self.name}` the option {name}; it has {', '.join(sorted(known))}."

    def _complain_of_command(self, words: Sequence[str]) -> Iterator[str]:
        word = next((word for word in words if not word.startswith("-")), None)
        if word is None:
            return
        if word in self.commands:
            yield from self.commands[word].complain(words[list(words).index(word) + 1 :])
        elif word.isidentifier():
            yield f"names `{self.name} {word}`; commands are {', '.join(sorted(self.commands))}."


def load_commands(module: str = "kea.cli.app") -> CommandTree:
    """Read the tree of the Typer application named `app` in a module; raises `SourceMissing` where there is none."""
    import typer.main

    return _read_command("kea", typer.main.get_command(load_attribute(module, "app")))


def _read_command(name: str, command: Any) -> CommandTree:
    children = {
        key: _read_command(f"{name} {key}", child)
        for key, child in getattr(command, "commands", {}).items()
        if not child.hidden
    }
    options = tuple(_read_option(param) for param in command.params if not getattr(param, "hidden", False))
    return CommandTree(name, (command.help or "").strip(), options, children)


def _read_option(param: Any) -> Option:
    default = "" if param.default in (None, False, ()) or callable(param.default) else str(param.default)
    return Option(
        names=(*param.opts, *param.secondary_opts),
        help=" ".join((getattr(param, "help", None) or "").split()),
        default=default,
        required=param.required,
        is_argument=param.param_type_name == "argument",
    )
