"""The command line: parses, calls, shows. One module a command; `main` says what a command offers."""

from fera.cli.main import main

__all__ = ["main"]
