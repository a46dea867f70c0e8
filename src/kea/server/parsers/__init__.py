"""Parsers of outputs: reasoning and tool calls of the common families."""

from kea.server.parsers.base import CallArguments, CallBegin, Content, Delta, Parser, PlainParser, Reasoning
from kea.server.parsers.choose import (
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    Forced,
    OutputFormat,
    check_parsers,
    choose_format,
    create_forced_parser,
)

__all__ = [
    "REASONING_PARSERS",
    "TOOL_CALL_PARSERS",
    "CallArguments",
    "CallBegin",
    "Content",
    "Delta",
    "Forced",
    "OutputFormat",
    "Parser",
    "PlainParser",
    "Reasoning",
    "check_parsers",
    "choose_format",
    "create_forced_parser",
]
