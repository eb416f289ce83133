"""Plots of a study, with matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fera.analysis.plots import band_names
from fera.comparison.findings import QUARTER_NAMES, Finding
from fera.comparison.statistics import Interval

_AXIS = "difference of the loss x 1000 (left of 0: better)"


def plot_differences(findings: Sequence[Finding], reference: str, path: Path) -> None:
    """Plot each method's difference from the reference, over all styles and in each of them.

    Args:
        findings: of the study; the reference's own is left out.
        reference: its label.
        path: the file.
    """
    compared = _compared(findings)
    styles = list(dict.fromkeys(style for finding in compared for style in finding.by_style))
    panels: list[tuple[str, Callable[[Finding], Interval | None]]] = [("all styles", lambda finding: finding.overall)]
    panels += [(style, lambda finding, style=style: finding.by_style.get(style)) for style in styles]  # type: ignore[misc]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    size = (1.8 + 3.0 * columns, 1.1 + rows * (0.7 + 0.34 * len(compared)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        title, value = panels[index]
        _forest(axes, [(finding.label, value(finding)) for finding in compared])
        axes.set_title(title, fontweight="bold" if index == 0 else "normal")
    figure.supxlabel(f"{_AXIS}, against {reference}; bars: 95 %", fontsize="medium")
    figure.savefig(path, dpi=120)


def plot_places(findings: Sequence[Finding], reference: str, path: Path) -> None:
    """Plot where along the noise process and at which frequencies methods differ from the reference.

    Args:
        findings: of the study; the reference's own is left out.
        reference: its label.
        path: the file.
    """
    compared = _compared(findings)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, [(finding.label, finding.by_quarter) for finding in compared], list(QUARTER_NAMES))
    left.set(title="quarter of the noise process", ylabel=f"difference of the loss x 1000, against {reference}")
    bands = min((len(finding.by_band) for finding in compared), default=0)
    names = [f"{name} band" for name in band_names(bands)] if bands > 1 else ["all"] * bands
    _lines(right, [(finding.label, finding.by_band[:bands]) for finding in compared], names)
    right.set(title="frequency band of the error")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    figure.savefig(path, dpi=120)


def _compared(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.overall is not None]


def _forest(axes: Axes, rows: Sequence[tuple[str, Interval | None]]) -> None:
    axes.axvline(0, color="0.6", linewidth=1)
    for place, (_, interval) in enumerate(rows):
        if interval is not None:
            color = ("tab:green" if interval.mean < 0 else "tab:red") if interval.is_clear else "0.35"
            axes.plot([1000 * interval.low, 1000 * interval.high], [place, place], color=color, linewidth=2)
            axes.plot(1000 * interval.mean, place, "o", color=color, markersize=5)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _lines(axes: Axes, rows: Sequence[tuple[str, Sequence[Interval | None]]], names: Sequence[str]) -> None:
    axes.axhline(0, color="0.6", linewidth=1)
    for index, (label, intervals) in enumerate(rows):
        shift = (index - (len(rows) - 1) / 2) * min(0.09, 0.7 / max(len(rows), 1))
        found = [(place + shift, one) for place, one in enumerate(intervals) if one is not None]
        means = [1000 * one.mean for _, one in found]
        below = [1000 * (one.mean - one.low) for _, one in found]
        above = [1000 * (one.high - one.mean) for _, one in found]
        places = [place for place, _ in found]
        axes.errorbar(places, means, yerr=[below, above], fmt="o", markersize=5, capsize=2, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
