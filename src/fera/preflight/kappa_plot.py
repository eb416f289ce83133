"""Plot of a calibration of kappa, with matplotlib."""

import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fera.method.calibration import Calibration
from fera.traces.plot import band_names


def plot_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Plot what each kappa tells, and what the indicator looks like at the chosen one.

    Args:
        calibration: with scores of at least one candidate.
        path: the file; its ending chooses the format (png, svg, pdf).
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_scores(left, calibration)
    _draw_shares(right, calibration)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _draw_scores(axes: Axes, calibration: Calibration) -> None:
    scores = calibration.scores
    pixels = [score.kappa * calibration.shortest_side for score in scores]
    for label, values in (
        ("both: the score", [score.bits for score in scores]),
        ("noise level", [score.level_bits for score in scores]),
        ("sample, given the level", [score.sample_bits for score in scores]),
    ):
        axes.plot(pixels, values, marker="o", markersize=3, label=label)
    chosen = calibration.kappa * calibration.shortest_side
    axes.axvline(chosen, color="0.4", linestyle=":", label=f"kappa = {calibration.kappa:.4g}")
    axes.set_xscale("log", base=2)
    shown = pixels[::2]
    axes.set_xticks(shown, [f"{pixel:.3g}" for pixel in shown], minor=False)
    axes.set(
        xlabel=f"finest scale in latent pixels (shortest side {calibration.shortest_side})",
        ylabel="bits",
        title="what the indicator tells",
    )
    axes.set_ylim(bottom=0)


def _draw_shares(axes: Axes, calibration: Calibration) -> None:
    chosen = calibration.chosen
    levels = range(1, len(calibration.timesteps) + 1)
    for index, label in enumerate(band_names(calibration.num_bands)):
        mean = [row[index] for row in chosen.shares]
        std = [row[index] for row in chosen.shares_std]
        low = [max(0.0, value - spread) for value, spread in zip(mean, std, strict=True)]
        high = [min(1.0, value + spread) for value, spread in zip(mean, std, strict=True)]
        line = axes.plot(levels, mean, marker="o", markersize=3, label=label)[0]
        axes.fill_between(levels, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xticks(list(levels), [f"{timestep:.3g}" for timestep in calibration.timesteps])
    axes.set(
        xlabel="timestep",
        ylabel="share of the latent's energy",
        ylim=(0, 1.02),
        title=f"the indicator at kappa = {calibration.kappa:.4g}",
    )
