"""Plots of band energies along denoising steps and noise levels, with matplotlib."""

import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from fera.analysis.energies import Energies, spread
from fera.analysis.reconstruction import relative_error
from fera.traces.plot import band_names

_TITLES = {
    "latent": "latent z_t",
    "noisy": "noisy latent",
    "clean": "predicted clean latent",
    "prediction": "prediction",
}
_LINES = ("--", "-")


def plot_energies(models: Sequence[Energies], path: str | os.PathLike[str]) -> None:
    """Plot shares and energies of latent, predicted clean latent and prediction along the steps.

    Lines are means over pictures, shades reach from the 10th to the 90th percentile.

    Args:
        models: one or two; of two, the first is dashed and without shades.
        path: the file; its ending chooses the format (png, svg, pdf).
    """
    signals = list(models[0].signals)
    figure = Figure(figsize=(10, 3.1 * len(signals)), layout="constrained")
    axes = figure.subplots(len(signals), 2, squeeze=False)
    for row, signal in enumerate(signals):
        for axis, quantity in zip(axes[row], ("share", "energy"), strict=True):
            for number, entry in enumerate(models):
                values = entry.shares(signal) if quantity == "share" else entry.signals[signal]
                _draw(axis, values, _LINES[number + 2 - len(models)], shaded=number == len(models) - 1)
            axis.set_title(f"{_TITLES[signal]}: {quantity} of each band", fontsize=10)
            _finish(axis, models[0].timesteps, "denoising step (timestep)")
        axes[row][0].set_ylim(0, 1.02)
        axes[row][1].set_yscale("log")
    _legend(axes[0][0], models)
    figure.savefig(path, dpi=110)


def plot_reconstruction(models: Sequence[Energies], path: str | os.PathLike[str]) -> None:
    """Plot what one prediction from each noise level recovers of real pictures, band by band.

    Args:
        models: one or two, as in `plot_energies`.
        path: the file.
    """
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, signal in zip(axes.flat, ("noisy", "clean", "error"), strict=False):
        for number, entry in enumerate(models):
            line, shaded = _LINES[number + 2 - len(models)], number == len(models) - 1
            if signal == "error":
                _draw(axis, entry.signals["error"], line, shaded=shaded)
            else:
                _draw(axis, entry.shares(signal), line, shaded=shaded)
        title = "error: energy of each band" if signal == "error" else f"{_TITLES[signal]}: share of each band"
        axis.set_title(title, fontsize=10)
        axis.set_yscale("log") if signal == "error" else axis.set_ylim(0, 1.02)
    last = axes[1][1]
    for number, entry in enumerate(models):
        for band, values in enumerate(relative_error(entry).T.tolist()):
            line = _LINES[number + 2 - len(models)]
            last.plot(range(1, len(values) + 1), values, line, color=f"C{band}", linewidth=1.5)
    last.axhline(1, color="0.6", linewidth=0.8)
    last.set_yscale("log")
    last.set_title("error over the pictures' own energy (1: nothing recovered)", fontsize=10)
    for axis in axes.flat:
        _finish(axis, models[0].timesteps, "noise level (timestep)")
    _legend(axes[0][0], models)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, values: Tensor, line: str, *, shaded: bool) -> None:
    statistics = spread(values)
    steps = range(1, len(values) + 1)
    for band in range(values.shape[2]):
        axes.plot(steps, statistics.mean[:, band].tolist(), line, color=f"C{band}", linewidth=1.5)
        if shaded:
            edges = (statistics.low[:, band].tolist(), statistics.high[:, band].tolist())
            axes.fill_between(steps, *edges, color=f"C{band}", alpha=0.15, linewidth=0)


def _finish(axes: Axes, timesteps: Sequence[float], label: str) -> None:
    shown = sorted({*range(0, len(timesteps), max(1, len(timesteps) // 6)), len(timesteps) - 1})
    if len(shown) > 2 and shown[-1] - shown[-2] < max(1, len(timesteps) // 6):
        del shown[-2]  # its label would lie under the last one's
    axes.set_xticks([index + 1 for index in shown], [f"{index + 1}\n({timesteps[index]:.0f})" for index in shown])
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _legend(axes: Axes, models: Sequence[Energies]) -> None:
    bands = next(iter(models[0].signals.values())).shape[2]
    handles = [Line2D([], [], color=f"C{band}", label=name) for band, name in enumerate(band_names(bands))]
    if len(models) > 1:
        handles += [
            Line2D([], [], color="0.3", linestyle="--", label=models[0].model),
            Line2D([], [], color="0.3", linestyle="-", label=models[1].model),
        ]
    axes.legend(handles=handles, frameon=False, fontsize=8)
