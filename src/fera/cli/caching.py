"""`fera data cache`."""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

from fera.cli.train import add_key_flags, key_flags
from fera.errors import FeraError
from fera.support.durations import in_time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the action's options."""
    parser.usage = "%(prog)s CONFIG.toml [--part K/N] [--json] [--KEY VALUE ...]"
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="a training configuration")
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="K/N",
        help="fill the K-th of N parts, each of which may be filled on a machine of its own (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fill the cache, or a part of it."""
    from fera.config.reading import load_config

    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", arguments.part)
    if found is None:
        raise FeraError(f"`part` must be like 2/4, the second of four parts, got {arguments.part!r}")
    config = load_config(arguments.config, key_flags(arguments))

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.preflight.cache_fill import fill_cache

    with Terminal() as terminal:
        filled = fill_cache(config, part=int(found[1]), parts=int(found[2]), listener=terminal)
    if filled is None:
        return 0
    if arguments.json:
        print(json.dumps(asdict(filled), default=str))
        return 0
    held = filled.entries - filled.missing
    print(f"{filled.folder}: {held:,} of {filled.entries:,} entries for {filled.pictures:,} pictures, ", end="")
    print(f"{in_time(filled.seconds)}")
    if filled.missing:
        print(f"{filled.missing:,} entries are for other parts than {filled.part}/{filled.parts}")
    return 0
