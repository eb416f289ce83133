"""The report of a study: tables and plots in a folder, the main table on the console."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from fera.comparison.findings import Finding, find_differences, machine, overview, remarks, tables
from fera.comparison.plots import plot_differences, plot_places
from fera.comparison.results import Result
from fera.comparison.study import Study
from fera.comparison.working import rates_at_the_edge
from fera.errors import FeraError

_ON_THE_CONSOLE = ("method", "runs", "loss", "difference x 1000, 95 %", "so")


def write_report(study: Study, results: Sequence[Result], folder: Path, console: Console) -> None:
    """Write `comparison.md` and its plots, and print the main table.

    Args:
        study: the study.
        results: its runs, finished or not.
        folder: made if missing.
        console: gets the table.

    Raises:
        FeraError: there are no results, they do not pair, or the folder cannot be written.
    """
    if not results:
        raise FeraError(f"study {study.name} has no finished runs to report")
    findings = find_differences(study, results)
    drawn = _drawn(study, findings)
    notes = remarks(study, findings) + rates_at_the_edge(study, results)
    if hidden := [finding.label for finding in findings if finding not in drawn]:
        notes.append(f"In the tables alone, being of another size: {', '.join(hidden)}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _plot(study, drawn, folder)
        (folder / "comparison.md").write_text(_markdown(study, findings, notes), encoding="utf-8")
    except OSError as error:
        raise FeraError(f"cannot write to {folder}: {error.strerror}") from error
    console.print(_rich(study, findings))
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'comparison.md'}", markup=False, soft_wrap=True)


def _drawn(study: Study, findings: Sequence[Finding]) -> list[Finding]:
    """Those to plot: a method of another size is often far from all others, which nobody could then tell apart."""
    matched = [finding for finding in findings if study.methods[finding.method].matched]
    return matched if any(finding.overall is not None for finding in matched) else list(findings)


def _plot(study: Study, findings: Sequence[Finding], folder: Path) -> None:
    if any(finding.overall is not None for finding in findings):
        reference = study.label(study.reference_method)
        plot_differences(findings, reference, folder / "differences.png")
        plot_places(findings, reference, folder / "by-noise-and-band.png")


def _markdown(study: Study, findings: Sequence[Finding], notes: Sequence[str]) -> str:
    machines = sorted({machine(run) for one in findings for run in one.runs})
    commits = sorted({str(run.code["commit"] or run.code["fera"])[:12] for one in findings for run in one.runs})
    parts = [
        f"# Study {study.name}",
        f"Base {study.base}; styles {', '.join(study.style_names)}; seeds {', '.join(map(str, study.seeds))}. "
        f"Code {', '.join(commits)}. Machines: {'; '.join(machines)}. docs/comparison.md says how to read this.",
    ]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts += [table.to_markdown() for table in tables(study, findings)]
    if any(finding.overall is not None for finding in findings):
        parts.append("![Differences](differences.png)")
        parts.append("![Differences by noise and frequency band](by-noise-and-band.png)")
    return "\n\n".join(parts) + "\n"


def _rich(study: Study, findings: Sequence[Finding]) -> RichTable:
    """The columns that say who is better, for a terminal of 80 columns; the file has them all."""
    content = overview(study, findings)
    table = RichTable(title=content.title, title_justify="left")
    shown = [content.columns.index(head) for head in _ON_THE_CONSOLE]
    for head, index in zip(_ON_THE_CONSOLE, shown, strict=True):
        table.add_column(head, justify="left" if index in (0, len(content.columns) - 1) else "right", overflow="fold")
    for row in content.rows:
        table.add_row(*(row[index] for index in shown))
    return table
