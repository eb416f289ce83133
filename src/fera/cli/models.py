"""`fera models`."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fera.models.table import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show the layers of one: a denoiser's class, a base's folder, file or Hub id; or list those with NAME in "
        "their names",
    )
    parser.add_argument("--markdown", action="store_true", help="print the reference page docs/models.md")
    parser.add_argument(
        "--target_modules", nargs="+", metavar="NAME", help="mark these layers, as adapter.target_modules"
    )
    parser.add_argument(
        "--exclude_modules", nargs="+", default=[], metavar="NAME", help="but these, as adapter.exclude_modules"
    )
    parser.add_argument("--blocks", nargs="+", default=[], metavar="BLOCK", help="only in these, as adapter.blocks")


def run(arguments: argparse.Namespace) -> int:
    """Print which models fera can adapt, or the layers of one."""
    from fera.models.table import rows, to_markdown

    if arguments.markdown:
        print(to_markdown(), end="")
        return 0
    if arguments.name is None:
        _print_rows(rows())
        return 0

    from fera.pipelines.skeletons import is_base, skeleton, skeletons

    if is_base(arguments.name):
        for name, denoiser in skeletons(arguments.name).items():
            _print_layers(denoiser, arguments, f"{name}: ")
        return 0
    found = _named(arguments.name, rows())
    _print_rows(found)
    if len(found) == 1:
        _print_layers(skeleton(found[0].name), arguments)
    return 0


def _named(name: str, rows: "Sequence[Row]") -> "list[Row]":
    """Rows of a class, or with a name in those of the class, its pipelines or their models."""
    from fera.errors import FeraError
    from fera.models.families import MODELS

    for row in rows:
        if name in (row.name, *row.pipelines):
            return [row]
    found = [
        row
        for row in rows
        if any(
            name.lower() in known.lower()
            for known in (row.name, *row.pipelines, *(MODELS.get(pipeline, "") for pipeline in row.pipelines))
        )
    ]
    if not found:
        raise FeraError(
            f"fera knows no model with {name!r} in its name, and there is no such folder; `fera models` lists all"
        )
    return found


def _print_rows(rows: "Sequence[Row]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "trained", "drawn", "default targets")
    for row in rows:
        drawn = [pipeline for pipeline in row.pipelines if pipeline not in row.trained]
        table.add_row(row.name, "\n".join(row.trained), "\n".join(drawn), ", ".join(row.target_modules))
    Console().print(table)


def _print_layers(denoiser: "nn.Module", arguments: argparse.Namespace, prefix: str = "") -> None:
    """The layers of a denoiser, runs of equal blocks in one line, with a mark at those that are adapted."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fera.models.layers import Layers, adaptable, lora_size, shape_of
    from fera.support.patterns import folded

    layers = adaptable(denoiser)
    chosen = set(Layers(arguments.target_modules, arguments.exclude_modules, arguments.blocks).names(denoiser))
    kinds: dict[tuple[str, bool], list[str]] = {}
    for name, layer in layers.items():
        kinds.setdefault((shape_of(layer), name in chosen), []).append(name)
    lines = [(pattern, *kind) for kind, names in kinds.items() for pattern in folded(names)]
    order = {name: place for place, name in enumerate(layers)}
    table = Table("layer", "size", "adapted", box=None, padding=(0, 2, 0, 0))
    for pattern, shape, is_chosen in sorted(lines, key=lambda line: order.get(_first(line[0]), 0)):
        table.add_row(Text(pattern), shape, "yes" if is_chosen else "")
    console = Console(highlight=False)
    console.print(table)
    size = sum(lora_size(layers[name]) for name in chosen)
    console.print(
        f"{prefix}{type(denoiser).__name__}: {len(chosen)} of {len(layers)} layers adapted; "
        f"{size:,} parameters for each rank",
        soft_wrap=True,
    )


def _first(pattern: str) -> str:
    """The first of the names that a folded pattern stands for."""
    return ".".join(part.split("-")[0] for part in pattern.split("."))
