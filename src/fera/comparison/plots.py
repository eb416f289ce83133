"""Plots of a study, with matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fera.comparison.findings import QUARTER_NAMES, Finding
from fera.comparison.statistics import Interval
from fera.traces.plot import band_names

_AXIS = "difference of the loss x 1000 (left of 0: better)"


def plot_differences(findings: Sequence[Finding], reference: str, path: Path) -> None:
    """Plot each method's difference from the reference, over all styles and in each of them.

    Args:
        findings: the findings of the study; the reference's own is left out.
        reference: its label.
        path: the file.
    """
    compared = _compared(findings)
    styles = list(dict.fromkeys(style for finding in compared for style in finding.by_style))
    panels: list[tuple[str, Callable[[Finding], Interval | None]]] = [("all styles", lambda finding: finding.overall)]
    panels += [(style, lambda finding, style=style: finding.by_style.get(style)) for style in styles]  # type: ignore[misc]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=_size(columns, rows, len(compared)), layout="constrained")
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
        findings: the findings of the study; the reference's own is left out.
        reference: its label.
        path: the file.
    """
    compared = _compared(findings)
    bands = min((len(finding.by_band) for finding in compared), default=0)
    names = [f"{name} band" for name in band_names(bands)] if bands > 1 else ["all bands"] * bands
    columns = max(len(QUARTER_NAMES), bands)
    figure = Figure(figsize=_size(columns, 2, len(compared)), layout="constrained")
    # Quarters, and bands, have one scale: where a method gains is to be seen.
    grid = figure.subplots(2, columns, squeeze=False, sharex="row", sharey=True)
    for row, titles in enumerate((QUARTER_NAMES, names)):
        for index, axes in enumerate(grid[row]):
            if index >= len(titles):
                axes.set_visible(False)
                continue
            found = [one.by_band[index] if row else one.by_quarter[index] for one in compared]
            _forest(axes, [(one.label, interval) for one, interval in zip(compared, found, strict=True)])
            axes.set_title(titles[index])
    figure.supxlabel(f"{_AXIS}, against {reference}; bars: 95 %", fontsize="medium")
    figure.savefig(path, dpi=120)


def _size(columns: int, rows: int, methods: int) -> tuple[float, float]:
    return 1.8 + 3.0 * columns, 1.1 + rows * (0.7 + 0.34 * methods)


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
