"""Plots of gates picture by picture, and of the experts' weight updates, with matplotlib."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from fera.analysis.gates import GatePaths
from fera.analysis.updates import ExpertUpdates
from fera.traces.plot import band_names


def plot_gates(paths: Sequence[GatePaths], path: str | os.PathLike[str]) -> None:
    """Plot gates along the steps, their entropy and use, and gates against the shares of the bands.

    Args:
        paths: at least one adapter's.
        path: the file; its ending chooses the format (png, svg, pdf).
    """
    figure = Figure(figsize=(11, 6.4 * len(paths)), layout="constrained")
    parts = figure.subfigures(len(paths), 1, squeeze=False)
    for part, entry in zip(parts[:, 0], paths, strict=True):
        _draw_paths(part, entry)
    figure.savefig(path, dpi=110)


def plot_updates(updates: ExpertUpdates, path: str | os.PathLike[str]) -> None:
    """Plot norms of the experts' updates by kind of layer, and how alike the updates are.

    Args:
        updates: the updates of E experts.
        path: the file.
    """
    kinds = list(updates.layers)
    experts = len(updates.norms["all"])
    labels = [f"expert {e + 1}" for e in range(experts)]
    figure = Figure(figsize=(3.2 + 0.8 * experts + 4.2, max(3.2, 0.42 * len(kinds) + 1.6)), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Root mean square over the layers of a kind: kinds differ in how many there are.
    norms = [(updates.norms[kind] / updates.layers[kind] ** 0.5).tolist() for kind in kinds]
    _heat(left, norms, [f"{kind} ({updates.layers[kind]})" for kind in kinds], labels, "Blues", (0, None), ".3g")
    left.set_title("norm of an update, a layer", fontsize=10)
    _heat(right, updates.cosines["all"].tolist(), labels, labels, "RdBu_r", (-1, 1), ".2f")
    right.set_title("cosine similarity between updates, all layers", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_paths(figure: SubFigure, entry: GatePaths) -> None:
    bands = entry.indicator.shape[2]
    figure.suptitle(entry.adapter)
    halves = figure.subfigures(2, 1, squeeze=False)
    above, below = halves[0, 0], halves[1, 0]
    left, right = above.subplots(1, 2)
    steps = range(1, len(entry.timesteps) + 1)
    mean = entry.gates.mean(dim=1)
    for expert in range(entry.gates.shape[2]):
        for values in entry.gates[:, :, expert].T.tolist():
            left.plot(steps, values, color=f"C{expert}", alpha=0.25, linewidth=0.7)
        label = f"expert {expert + 1}: use {entry.use[expert]:.2f}"
        left.plot(steps, mean[:, expert].tolist(), color=f"C{expert}", linewidth=2, label=label)
    left.set(title="gates: mean (thick) and every picture (thin)", ylim=(0, 1.02), xlabel="denoising step")
    right.plot(steps, entry.entropy.tolist(), color="0.2", marker="o", markersize=3, label="a gate's")
    right.axhline(entry.use_entropy, color="0.5", linestyle="--", linewidth=1, label="of the use over all steps")
    right.set(title="entropy (1: uniform, 0: one expert)", ylim=(0, 1.05), xlabel="denoising step")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    for band, axes in enumerate(below.subplots(1, bands, sharey=True, squeeze=False)[0]):
        shares = entry.indicator[:, :, band].flatten().tolist()
        for expert in range(entry.gates.shape[2]):
            axes.scatter(
                shares, entry.gates[:, :, expert].flatten().tolist(), s=6, alpha=0.5, color=f"C{expert}", linewidths=0
            )
        axes.set(xlabel=f"share of the {band_names(bands)[band]} band", ylim=(0, 1.02))
        axes.set_ylabel("gate" if band == 0 else "")
        _plain(axes)


def _heat(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    colors: str,
    limits: tuple[float, float | None],
    form: str,
) -> None:
    image = axes.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            red, green, blue, _ = image.to_rgba(np.array([value]))[0]
            ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
            axes.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=8, color=ink)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
