"""`fera train`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_origin

from fera.config.keys import Key, keys
from fera.config.reading import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: one flag a key of the configuration among them."""
    parser.usage = "%(prog)s [CONFIG.toml] [--resume [--resume.allow NAME ...] | --overwrite] [--KEY VALUE ...]"
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="the configuration")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    existing.add_argument("--overwrite", action="store_true", help="replace the run in output_dir")
    parser.add_argument(
        "--resume.allow",
        dest="allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --resume: settings that may differ from the checkpoint's, as train.learning_rate; a section's name "
        "allows all of it (data: the pictures and captions too), all allows everything that can go on",
    )
    add_key_flags(parser)


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """Declare one flag a key of the configuration, grouped by section."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for key in keys():
        section = key.name.rpartition(".")[0] or "run"
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        _add_flag(groups[section], key)


def key_flags(arguments: argparse.Namespace) -> dict[str, str | Sequence[str]]:
    """Keys that were given as flags, with their texts."""
    return {name.removeprefix("key:"): value for name, value in vars(arguments).items() if name.startswith("key:")}


def _add_flag(group: argparse._ArgumentGroup, key: Key) -> None:
    # Percent signs are argparse's; values stay text here, the configuration's own validation reads them.
    help_ = f"{key.field.description} ({key.expects}; {key.default})".replace("%", "%%")
    options: dict[str, str | Sequence[str]] = {"metavar": key.name.rpartition(".")[2].upper(), "help": help_}
    if key.type is bool:
        options |= {"nargs": "?", "const": "true"}
    elif get_origin(key.type) is list:
        options |= {"nargs": "*"}
    group.add_argument(f"--{key.name}", dest=f"key:{key.name}", default=argparse.SUPPRESS, **options)  # type: ignore[arg-type]


def run(arguments: argparse.Namespace) -> int:
    """Train as the file and the flags say."""
    config = load_config(arguments.config, key_flags(arguments))

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries
    from fera.training import train

    quiet_libraries()
    with Terminal() as terminal:
        train(
            config,
            resume=arguments.resume,
            allow=arguments.allow,
            overwrite=arguments.overwrite,
            listener=terminal,
        )
    return 0
