"""`fera inspect`."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("adapter", metavar="ADAPTER", help="safetensors file, adapter folder, run folder or Hub id")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what an adapter is, without loading any model."""
    from fera.adapters.inspection import describe

    description = describe(arguments.adapter)
    if arguments.json:
        print(json.dumps(description, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for section, entries in description.items():
        table = Table(title=section, title_justify="left", show_header=False, box=None, padding=(0, 2))
        table.add_column()
        table.add_column(overflow="fold")  # paths are to be copied
        for name, value in entries.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(name.replace("_", " "), Text("none" if value in (None, [], "") else text))
        console.print(table)
    return 0
