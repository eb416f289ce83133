"""`fera config`."""

import argparse

from fera.config.keys import keys
from fera.config.reference import to_markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--markdown", action="store_true", help="print the reference page docs/configuration.md")


def run(arguments: argparse.Namespace) -> int:
    """Print what every key of a training configuration means."""
    if arguments.markdown:
        print(to_markdown(), end="")
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table("key", "takes", "default", "meaning")
    for key in keys():
        table.add_row(key.name, key.expects, key.default, key.field.description)
    Console().print(table)
    return 0
