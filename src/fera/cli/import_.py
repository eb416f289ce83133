"""`fera import`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what FeRAModel.save_adapters wrote (.pt)")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the adapter")
    parser.add_argument(
        "--base", required=True, help='pipeline it was trained on: a folder, a Hub id, or "emoji"; it names none itself'
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="alpha of its training (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="router_tau of its training (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter in the folder")


def run(arguments: argparse.Namespace) -> int:
    """Convert, save, say where."""
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.errors import FeraError
    from fera.export.released import load_released
    from fera.format import WEIGHTS
    from fera.pipelines.adapters import save_adapter
    from fera.pipelines.base import load_base

    weights = arguments.output / WEIGHTS
    if weights.exists() and not arguments.overwrite:
        raise FeraError(f"{weights} exists already; give another OUTPUT, or --overwrite to replace it")
    pipe = load_base(arguments.base)
    load_released(pipe, arguments.checkpoint, alpha=arguments.alpha, temperature=arguments.temperature)
    save_adapter(pipe, arguments.output)
    print(weights)
    return 0
