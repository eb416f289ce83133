"""`fera calibrate`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.usage = "%(prog)s CONFIG.toml [options]\n       %(prog)s --base BASE --data FOLDER [options]"
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="configuration of a training run")
    parser.add_argument("--base", help='diffusers pipeline: a folder, a Hub id, or "emoji"')
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of pictures and captions")
    parser.add_argument("--resolution", type=int, help="side of the pictures in pixels; the base's own when left out")
    parser.add_argument("--num-bands", type=int, help="frequency bands of the indicator; the configuration's, or 3")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("calibration"),
        metavar="FOLDER",
        help="gets calibration.json and calibration.png (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Score kappas on the training latents, print the table and the choice."""
    from rich.console import Console
    from rich.table import Table

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.preflight.kappa_search import calibrate_run, calibration_config

    config = calibration_config(
        arguments.config,
        base=arguments.base,
        data=arguments.data,
        resolution=arguments.resolution,
        num_bands=arguments.num_bands,
        output=arguments.output,
    )
    with Terminal() as terminal:
        calibration = calibrate_run(config, arguments.output, terminal)
    columns = ("kappa", "latent pixels", "level bits", "sample bits", "score", "entropy", "")
    table = Table(*columns, box=None, padding=(0, 2))
    for score in calibration.scores:
        numbers = (score.level_bits, score.sample_bits, score.bits, score.entropy)
        is_chosen = score.kappa == calibration.kappa
        table.add_row(
            f"{score.kappa:.5g}",
            f"{score.kappa * calibration.shortest_side:.3g}",
            *(f"{number:.2f}" for number in numbers),
            "chosen" if is_chosen else "",
            style="bold" if is_chosen else None,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"kappa = {calibration.kappa!r}", markup=False)
    console.print(f"{arguments.output / 'calibration.json'}, {arguments.output / 'calibration.png'}", soft_wrap=True)
    return 0
