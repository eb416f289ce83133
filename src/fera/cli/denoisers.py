"""`fera denoisers`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--markdown", action="store_true", help="print the reference page docs/denoisers.md")


def run(arguments: argparse.Namespace) -> int:
    """Print which denoisers fera can adapt."""
    from fera.models.table import rows, to_markdown

    if arguments.markdown:
        print(to_markdown(), end="")
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table("class", "latent", "default targets", "pipelines")
    for row in rows():
        table.add_row(row.name, row.latent.strip("`"), ", ".join(row.target_modules), "\n".join(row.pipelines))
    Console().print(table)
    return 0
