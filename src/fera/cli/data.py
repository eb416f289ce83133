"""`fera data`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fera.cli import caching, captioning
from fera.cli.train import add_key_flags, key_flags
from fera.errors import FeraError
from fera.support.durations import about_time

if TYPE_CHECKING:
    from fera.domains.graph import DomainGraph
    from fera.pipelines.memory import Held
    from fera.preflight.report import DataReport, PictureReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = "show how pictures would be trained on, what it would cost, and what is wrong with them"
    check = actions.add_parser("check", help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False)
    check.usage = "%(prog)s [FOLDER|CONFIG.toml] [--list] [--json] [--without-base] [--KEY VALUE ...]"
    check.add_argument(
        "target",
        nargs="?",
        type=Path,
        metavar="FOLDER|CONFIG.toml",
        help="pictures, or a training configuration; left out with --data.dataset_name",
    )
    check.add_argument(
        "--list",
        action="store_true",
        help="print each picture or clip: its size, frames and length, what it is brought to, the part that is seen, "
        "caption and mask",
    )
    check.add_argument("--json", action="store_true", help="print JSON, with what --list shows")
    check.add_argument("--without-base", action="store_true", help="do not load the base of a configuration: quicker")
    add_key_flags(check)
    about = "draw how far the stages of a run lie apart, and the way through them, before it is trained"
    graph = actions.add_parser("graph", help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False)
    graph.usage = "%(prog)s CONFIG.toml [--output FILE] [--json] [--KEY VALUE ...]"
    graph.add_argument("config", type=Path, metavar="CONFIG.toml", help="a training configuration with data.stages")
    graph.add_argument(
        "--output",
        type=Path,
        default=Path("stages.png"),
        metavar="FILE",
        help="the picture: png, svg or pdf (%(default)s)",
    )
    graph.add_argument("--json", action="store_true", help="print JSON in the place of tables")
    add_key_flags(graph)
    about = "encode pictures and captions beforehand, on as many machines as there are"
    described = about[0].upper() + about[1:] + "."
    caching.add_arguments(actions.add_parser("cache", help=about, description=described, allow_abbrev=False))
    about = "write captions for pictures that have none, by a model on this machine"
    described = about[0].upper() + about[1:] + "."
    captioning.add_arguments(actions.add_parser("caption", help=about, description=described, allow_abbrev=False))


def run(arguments: argparse.Namespace) -> int:
    """Check pictures, 2 where training would refuse them; or encode or caption them, or draw the graph of stages."""
    if arguments.action == "cache":
        return caching.run(arguments)
    if arguments.action == "caption":
        return captioning.run(arguments)
    return _graph(arguments) if arguments.action == "graph" else _check(arguments)


def _graph(arguments: argparse.Namespace) -> int:
    from fera.config.reading import load_config

    config = load_config(arguments.config, key_flags(arguments))

    from rich.console import Console

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.preflight.stage_graph import stage_graph

    if not arguments.output.resolve().parent.is_dir():
        raise FeraError(f"`output` {arguments.output}: there is no folder {arguments.output.resolve().parent}")
    with Terminal() as terminal:
        found = stage_graph(config, terminal)
    found.draw(arguments.output)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    _distances(console, found.graph)
    length = "" if found.length is None else f", of length {found.length:.4g}"
    separator = ", " if found.length is None else ", then "
    console.print(f"{found.order}{length}: {separator.join(found.names)}", markup=False, soft_wrap=True)
    console.print(str(arguments.output), markup=False, soft_wrap=True)
    return 0


def _distances(console: Any, graph: "DomainGraph") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"distances: {graph.measure}"), title_justify="left", box=None, padding=(0, 1))
    table.add_column()
    for number in range(1, len(graph.names) + 1):
        table.add_column(str(number), justify="right")
    for place, (name, row) in enumerate(zip(graph.names, graph.distances, strict=True)):
        label = f"{place + 1} {name}{' (target)' if place == graph.target else ''}"
        table.add_row(Text(label), *(f"{distance:.3g}" for distance in row))
    console.print(table)


def _check(arguments: argparse.Namespace) -> int:
    from fera.config.reading import load_config

    flags = key_flags(arguments)
    target = arguments.target
    is_config = target is not None and target.suffix == ".toml"
    with_base = not arguments.without_base and (is_config or "base" in flags)
    if not is_config:
        # What a check without a base or a run does not look at still has to be there.
        folder = {} if target is None else {"data.train_data_dir": str(target)}
        flags = {"base": "none", "output_dir": "runs/check"} | folder | flags
    config = load_config(target if is_config else None, flags)

    if with_base:  # else the libraries to quiet are not even imported
        from fera.cli.quiet import quiet_libraries

        quiet_libraries()
    from rich.console import Console

    from fera.preflight.data_check import examine

    with Console(stderr=True).status("looking at pictures"):
        report = examine(config, with_base=with_base)
    if arguments.json:
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _show(report, with_base=with_base, with_list=arguments.list)
    return 2 if report.problems else 0


def _show(report: "DataReport", *, with_base: bool, with_list: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    _table(console, f"{report.folder}: {report.layout}", _counts(report))
    if report.buckets:
        sounds = any(picture.sound is not None for picture in report.listing)
        _lines(
            console, f"{'lengths, sounds' if sounds else 'sizes (width x height), pictures'} an epoch:", report.buckets
        )
    if report.samples:
        captions = [f"{name}: {caption or '(no caption)'}" for name, caption in report.samples]
        _lines(console, "captions as trained on:", captions)
    if report.estimates is not None:
        _table(console, f"estimates on {report.estimates.device}", _costs(report))
    elif not with_base:
        console.print("without a base, nothing is said about its tokens, memory and time: give --base")
    if with_list:
        _lines(console, "pictures:", list(map(_picture, report.listing)))
    _lines(console, "colours:", report.colours)
    _lines(console, "notes:", report.notes)
    _lines(console, "equal files:", [" = ".join(names[:6]) for names in report.duplicates[:20]])
    _lines(console, "bad pictures:", report.bad[:50])
    if report.problems:
        _lines(console, "training would refuse:", report.problems, style="bold red")
    else:
        console.print("training would take this", style="green")


def _counts(report: "DataReport") -> dict[str, str]:
    from fera.preflight.clip_check import describe_clips
    from fera.preflight.data_check import summary
    from fera.preflight.sound_check import describe_sounds

    sounds = [picture.sound for picture in report.listing if picture.sound is not None]
    clips = [picture.clip for picture in report.listing if picture.clip is not None]
    rows = {
        **({"sounds": describe_sounds(sounds)} if sounds else {"pictures": str(report.pictures)}),
        **({"clips": describe_clips(clips)} if clips else {}),
        "an epoch": f"{report.rows} training {'sounds' if sounds else 'pictures'}, repeats counted",
        "held out": str(report.held_out) + summary(report.leaked).replace("(", "(also trained on: "),
    }
    if report.smallest and report.largest:
        rows["smallest, largest"] = f"{_size(report.smallest)}, {_size(report.largest)}"
    if report.class_pictures or report.class_pictures_to_draw:
        rows["class pictures"] = f"{report.class_pictures}, and {report.class_pictures_to_draw} to draw"
    if report.enlarged:
        rows["enlarged"] = f"{len(report.enlarged)}{summary(report.enlarged)}"
    if report.cropped:
        rows["longer than 1:4"] = f"{len(report.cropped)}{summary(report.cropped)}"
    lines = list(report.cleaned)
    if report.text_limits:  # of a base, which has brought PyTorch along
        from fera.data.caption_checks import describe_limits

        lines += describe_limits(report.text_limits)
        rows["tokens read"] = ", ".join(f"{limit.tokens} by {limit.encoder}" for limit in report.text_limits)
    if lines:
        rows["captions"] = "\n".join(lines)
    return rows


def _picture(picture: "PictureReport") -> str:
    from fera.preflight.sound_check import describe_sound

    parts = [f"{picture.name}: {describe_sound(picture.sound) if picture.sound else _size(picture.size)}"]
    if (clip := picture.clip) is not None:
        parts.append(f", {clip.frames} frames")
        if clip.frame_rate is not None and clip.seconds is not None:
            parts.append(f", {clip.frame_rate:.4g} a second, {clip.seconds:.3g} s")
    if picture.bucket and picture.crop:
        left, top, width, height = (f"{value:.4g}" for value in picture.crop)
        is_cropped = picture.crop[2:] != picture.size
        seen = f", {width} x {height} of it from {left}, {top}" if is_cropped else ""
        parts.append(f" to {_size(picture.bucket)}{seen}")
    if clip is not None and clip.trained_frames is not None:
        parts.append(f", the first {clip.trained_frames} frames at {clip.trained_rate:g} a second")
    if picture.held_out:
        parts.append(", held out")
    elif picture.repeats > 1:
        parts.append(f", {picture.repeats} times an epoch")
    if picture.colours:
        parts.append(f", {picture.colours}")
    if picture.sources:
        parts.append(f", from {', '.join(picture.sources)}")
    if picture.mask:
        parts.append(f", mask {picture.mask}")
    return "".join([*parts, f": {picture.caption or '(no caption)'}"])


def _costs(report: "DataReport") -> dict[str, str]:
    costs = report.estimates
    assert costs is not None
    return {
        "cache on disk": f"{_bytes(costs.cache_bytes)}: {costs.latents} latents, {costs.captions} captions",
        "trained parameters": f"{costs.trained_parameters:,}",
        "memory": f"{_bytes(costs.memory_bytes)} for weights and optimizer, and activations on top",
        **{f"  {name}": _bytes(size) for name, size in costs.parts.items()},
        **{f"  or {way}": f"{_bytes(memory)}{_waiting(way)}" for way, memory in costs.choices},
        "encoding": about_time(costs.encoding_seconds),
        "training": f"{about_time(costs.training_seconds)}, {costs.step_seconds:.2g} s a step",
    }


def _waiting(way: "Held") -> str:
    if way.host_bytes:
        return f", and {_bytes(way.host_bytes)} of the machine's memory"
    return f", and {_bytes(way.disk_bytes)} stay in the base's files" if way.disk_bytes else ""


def _table(console: Any, title: str, rows: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)


def _lines(console: Any, title: str, lines: list[str], style: str | None = None) -> None:
    if lines:
        console.print(title, style=style)
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
