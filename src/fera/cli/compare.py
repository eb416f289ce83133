"""`fera compare`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fera.errors import FeraError

if TYPE_CHECKING:
    from fera.comparison.report import Report

# Columns of the main table that a terminal shows.
_SHOWN = ("method", "runs", "loss", "difference x 1000, 95 %", "so")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="methods, styles, seeds and what they share")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="do the runs of these methods alone")
    parser.add_argument("--against", metavar="METHOD", help="report differences from this method, not the reference")
    parser.add_argument("--max-runs", type=int, metavar="N", help="do at most N trainings, then report")
    parser.add_argument("--overwrite", action="store_true", help="make runs again whose settings have changed")
    parser.add_argument("--report-only", action="store_true", help="report what is finished, train nothing")
    parser.add_argument("--collect", type=Path, metavar="FILE.json", help="write the results as one compact file too")
    parser.add_argument(
        "--from",
        dest="collection",
        type=Path,
        metavar="FILE.json",
        help="report the results of a file that --collect wrote; train nothing",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE.json",
        help="take over the results of a file that --collect wrote, and do the runs that it lacks",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, report."""
    if arguments.max_runs is not None and arguments.max_runs < 1:
        raise FeraError(f"--max-runs must be at least 1, got {arguments.max_runs}; --report-only trains nothing")
    if arguments.start_from and arguments.collection:
        raise FeraError("--start-from goes on with the results of a file, --from only reports them: give one of them")

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries
    from fera.comparison import collect, read_collection, read_results, read_study, read_trials, unpack
    from fera.comparison.report import write_report
    from fera.comparison.study import REPORT
    from fera.comparison.working import Options, work
    from fera.support.hints import hint

    quiet_libraries()
    study = read_study(arguments.study)
    named = [("--only", name) for name in arguments.only or ()]
    if arguments.against:
        named.append(("--against", arguments.against))
    for option, name in named:
        if name not in study.methods:
            known = list(study.methods)
            raise FeraError(f"{option} {name}: the study's methods are {', '.join(known)}{hint(name, known)}")
    with Terminal() as terminal:
        if arguments.start_from:
            taken = unpack(arguments.start_from, study, arguments.output)
            terminal.say(f"{taken} results taken over from {arguments.start_from}")
        if not (arguments.report_only or arguments.collection):
            work(
                study,
                arguments.output,
                Options(methods=arguments.only, max_runs=arguments.max_runs, overwrite=arguments.overwrite),
                terminal,
            )
    if arguments.collection:
        results = read_collection(arguments.collection, study)
    else:
        results = read_results(arguments.output, study)
    if not results and not (arguments.report_only or arguments.collection):
        return 0  # trials of learning rates alone
    folder = arguments.output / REPORT
    if arguments.against:
        study = study.model_copy(update={"reference": arguments.against})
        folder = folder / f"against-{arguments.against}"
    _show(write_report(study, results, folder, arguments.output))
    if arguments.collect:
        collect(results, read_trials(arguments.output, study), study, arguments.collect)
    return 0


def _show(report: "Report") -> None:
    """Print the columns that say who is better, for a terminal of 80 columns; the file has them all."""
    from rich.console import Console
    from rich.table import Table

    console, content = Console(highlight=False), report.overview
    table = Table(title=content.title, title_justify="left")
    shown = [content.columns.index(head) for head in _SHOWN]
    for head, index in zip(_SHOWN, shown, strict=True):
        table.add_column(head, justify="left" if index in (0, len(content.columns) - 1) else "right", overflow="fold")
    for row in content.rows:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for line in [*report.notes, f"report: {report.path}"]:
        console.print(line, markup=False, soft_wrap=True)
