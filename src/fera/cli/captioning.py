"""`fera data caption`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the action's options."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, as they are trained on")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="a model of transformers that describes pictures"
    )
    parser.add_argument("--prompt", help="what it is asked, where it takes a question or a task")
    parser.add_argument("--prefix", default="", help="put before each caption, such as a trigger word")
    parser.add_argument("--overwrite", action="store_true", help="caption pictures anew that have a caption")
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="how long a caption may become (%(default)s)"
    )
    parser.add_argument("--device", help="such as cuda or cpu; the fastest there is when left out")


def run(arguments: argparse.Namespace) -> int:
    """Write the captions that are missing."""
    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.captioning.captioner import CaptionRequest, write_missing_captions

    request = CaptionRequest(
        arguments.folder,
        arguments.model,
        arguments.prompt,
        f"{arguments.prefix} " if arguments.prefix else "",
        arguments.overwrite,
        arguments.max_new_tokens,
        arguments.device,
    )
    with Terminal() as terminal:
        count = write_missing_captions(request, terminal)
    print(f"{count} captions written")
    return 0
