"""`fera demo`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fera.demo import STYLES

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--style", choices=STYLES, help="the style to learn (fluent-emoji-high-contrast)")
    parser.add_argument("--steps", type=int, help="optimizer steps (480)")
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

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.cli.showcase import DEFAULT_STEPS, DEFAULT_STYLE, run_demo

    with Terminal() as terminal:
        result = run_demo(
            arguments.output,
            terminal,
            style=arguments.style or DEFAULT_STYLE,
            steps=arguments.steps if arguments.steps is not None else DEFAULT_STEPS,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
        )
    Console(highlight=False).print(_table(result, arguments.output))
    return 0


def _table(result: dict[str, Any], output: Path) -> "Table":
    from rich.table import Table

    table = Table(title="fera demo", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # paths are to be copied
    before, after = result["held_out_loss_before"], result["held_out_loss_after"]
    memory = result["peak_memory_bytes"]
    speed = result["samples_per_second"]
    for name, value in (
        ("style", f"{result['style']}, {result['training_pictures']} pictures"),
        ("trained", f"{result['parameters']:,} parameters, {result['steps']} steps, {speed:.1f} samples/s"),
        ("held-out loss", f"{before:.4f} before, {after:.4f} after ({after / before - 1:+.1%})"),
        ("time", f"{result['total_seconds']:.0f} s, of which training {result['training_seconds']:.0f} s"),
        ("peak memory", f"{memory / 1e9:.2f} GB" if memory else "unknown"),
        ("before and after", str(output / "grid.png")),
        ("gates", str(output / "gates.png")),
        ("adapter", str(output / "adapter")),
    ):
        table.add_row(name, value)
    return table
