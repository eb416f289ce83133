"""`fera push`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "adapter", type=Path, metavar="RUN_OR_ADAPTER", help="folder of a finished run, or an adapter's"
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, owner/name; made if it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(arguments: argparse.Namespace) -> int:
    """Upload, say where."""
    from rich.console import Console

    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.training.publishing.hub import claim_repo, find_adapter, push_adapter

    folder = find_adapter(arguments.adapter)
    url, left_out = push_adapter(folder, claim_repo(arguments.repo_id, private=arguments.private))
    if left_out:
        Console(stderr=True, highlight=False).print(f"not uploaded: {', '.join(left_out)}", markup=False)
    print(url)
    return 0
