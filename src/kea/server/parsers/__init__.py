"""Parsers of outputs: reasoning and tool calls of the common families."""

from kea.server.parsers.base import CallArguments, CallBegin, Content, Delta, Parser, PlainParser, Reasoning
from kea.server.parsers.choose import Forced, OutputFormat, choose_format, create_forced_parser

__all__ = [
    "CallArguments",
    "CallBegin",
    "Content",
    "Delta",
    "Forced",
    "OutputFormat",
    "Parser",
    "PlainParser",
    "Reasoning",
    "choose_format",
    "create_forced_parser",
]
