"""Kea serves LLM applications: programs of prompts connected by semantic variables.

Importing this package imports neither torch nor the server.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
