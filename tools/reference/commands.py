"""The page of commands: every command of `kea`, its arguments and options."""

from __future__ import annotations

from tools.commands import CommandTree, Option, load_commands
from tools.reference.page import Page, format_table


def render_commands() -> str:
    """Return a section per command, in the order in which `kea --help` lists them."""
    return "\n\n".join(_sections(load_commands()))


def _sections(command: CommandTree) -> list[str]:
    parts = [f"## `{command.name}`", command.help]
    if command.options:
        parts.append(format_table(["Option", "Default", "Meaning"], [_row(option) for option in command.options]))
    sections = ["\n\n".join(part for part in parts if part)]
    for child in command.commands.values():
        sections += _sections(child)
    return sections


def _row(option: Option) -> list[str]:
    spelled = ", ".join(f"`{name.upper() if option.is_argument else name}`" for name in option.names)
    default = "required" if option.required else f"`{option.default}`" if option.default else ""
    return [spelled, default, option.help]


PAGE = Page("commands.md", "Commands", render_commands)
