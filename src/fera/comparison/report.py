"""The report of a study: tables and plots in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fera.comparison.findings import Finding, Table, find_differences, machine, overview, remarks, tables
from fera.comparison.plots import plot_differences, plot_places
from fera.comparison.results import Result
from fera.comparison.sheets import write_sheets
from fera.comparison.study import Study
from fera.comparison.working import rates_at_the_edge
from fera.errors import FeraError


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Args:
        path: the path of `comparison.md`.
        overview: the main table.
        notes: what a reader should know beside it, a line each.
    """

    path: Path
    overview: Table
    notes: list[str]


def write_report(study: Study, results: Sequence[Result], folder: Path, output: Path | None = None) -> Report:
    """Write `comparison.md` and its plots.

    Args:
        study: the study.
        results: its runs, finished or not.
        folder: made if missing.
        output: the study's folder, whose pictures are shown side by side; none are when left out.

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
        sheets = [] if output is None else write_sheets(study, results, output, folder)
        (folder / "comparison.md").write_text(_markdown(study, findings, notes, sheets), encoding="utf-8")
    except OSError as error:
        raise FeraError(f"cannot write to {folder}: {error.strerror}") from error
    return Report(folder / "comparison.md", overview(study, findings), notes)


def _drawn(study: Study, findings: Sequence[Finding]) -> list[Finding]:
    """Those to plot: a method of another size is often far from all others, which nobody could then tell apart."""
    matched = [finding for finding in findings if study.methods[finding.method].matched]
    return matched if any(finding.overall is not None for finding in matched) else list(findings)


def _plot(study: Study, findings: Sequence[Finding], folder: Path) -> None:
    if any(finding.overall is not None for finding in findings):
        reference = study.label(study.reference_method)
        plot_differences(findings, reference, folder / "differences.png")
        plot_places(findings, reference, folder / "by-noise-and-band.png")


def _markdown(study: Study, findings: Sequence[Finding], notes: Sequence[str], sheets: Sequence[str]) -> str:
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
    if sheets:
        parts.append(
            "## Pictures\n\nThe same prompts from the same noise. The seed is the first that most methods have, the "
            "prompts are the first by a hash of their words."
        )
        parts += [f"![Pictures of all methods]({name})" for name in sheets]
    return "\n\n".join(parts) + "\n"
