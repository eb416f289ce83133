"""`fera demo`."""

import argparse
from pathlib import Path

from fera.demo import STYLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--style", choices=STYLES, help="the style to learn (fluent-emoji-high-contrast)")
    parser.add_argument("--steps", type=int, help="optimizer steps (400)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="the run's folder (%(default)s)"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with an interrupted demo")
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a run in the folder that is no demo; an earlier demo is replaced anyway",
    )


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune, draw, summarize."""
    from rich.console import Console

    from fera.commands.quiet import quiet_libraries

    quiet_libraries()
    from fera.demo.showcase import DEFAULT_STEPS, DEFAULT_STYLE, run_demo

    run_demo(
        arguments.output,
        Console(highlight=False),
        style=arguments.style or DEFAULT_STYLE,
        steps=arguments.steps if arguments.steps is not None else DEFAULT_STEPS,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    return 0
