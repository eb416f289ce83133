"""Plots, with matplotlib."""

import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fera.traces.curves import RoutingCurves


def plot_routing(curves: Sequence[RoutingCurves], path: str | os.PathLike[str]) -> None:
    """Plot gates and band shares along the denoising steps, one row an adapter, the spread between samples shaded.

    Args:
        curves: at least one adapter's.
        path: the file; its ending chooses the format (png, svg, pdf).
    """
    figure = Figure(figsize=(10, 3.6 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 2, squeeze=False)
    for (left, right), curve in zip(axes, curves, strict=True):
        _draw(left, curve.timesteps, curve.indicator, curve.indicator_std, band_names(len(curve.indicator[0])))
        _draw(
            right,
            curve.timesteps,
            curve.gates,
            curve.gates_std,
            [f"expert {e + 1}" for e in range(len(curve.gates[0]))],
        )
        left.set(ylabel="share of the latent's energy", title=f"{curve.adapter}: what the router sees")
        right.set(ylabel="gate", title=f"{curve.adapter}: what it answers")
    figure.savefig(path, dpi=120)


def _draw(
    axes: Axes,
    timesteps: Sequence[float],
    means: Sequence[Sequence[float]],
    stds: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> None:
    steps = range(1, len(timesteps) + 1)
    for index, label in enumerate(labels):
        mean = [row[index] for row in means]
        low = [max(0.0, row[index] - std[index]) for row, std in zip(means, stds, strict=True)]
        high = [min(1.0, row[index] + std[index]) for row, std in zip(means, stds, strict=True)]
        line = axes.plot(steps, mean, marker="o", markersize=3, label=label)[0]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="denoising step (timestep)", ylim=(0, 1.02))
    shown = sorted({*range(0, len(timesteps), max(1, len(timesteps) // 6)), len(timesteps) - 1})
    axes.set_xticks([index + 1 for index in shown], [f"{index + 1}\n({timesteps[index]:.0f})" for index in shown])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def band_names(count: int) -> list[str]:
    """What K bands are called, low to high frequency."""
    return ["low", *(["middle"] if count == 3 else [f"middle {k}" for k in range(1, count - 1)]), "high"]
