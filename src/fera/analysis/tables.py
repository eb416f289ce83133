"""Tables of an analysis, as CSV files."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fera.analysis.energies import Energies, Spread, spread
from fera.analysis.gates import GatePaths
from fera.analysis.updates import ExpertUpdates
from fera.traces.plot import band_names

_Path = str | os.PathLike[str]


def save_energies(energies: Sequence[Energies], path: _Path) -> None:
    """Write energies: model, signal, step, timestep, band, quantity (energy or share), mean, std, p10, p90.

    Args:
        energies: one a model.
        path: the file. Steps count from 1.
    """
    header = ("model", "signal", "step", "timestep", "band", "quantity", "mean", "std", "p10", "p90")
    _write(path, header, (row for entry in energies for row in _energy_rows(entry)))


def save_gates_by_picture(paths: Sequence[GatePaths], prompts: Sequence[str], path: _Path) -> None:
    """Write gates and shares of every picture: adapter, picture, prompt, step, timestep, quantity, index, value.

    Args:
        paths: the paths of adapters.
        prompts: N, one a picture.
        path: the file. Pictures, steps and indices count from 1.
    """
    header = ("adapter", "picture", "prompt", "step", "timestep", "quantity", "index", "value")
    _write(path, header, (row for entry in paths for row in _gate_rows(entry, prompts)))


def save_updates(updates: ExpertUpdates, path: _Path) -> None:
    """Write norms and similarities: layers (their kind), count, expert, norm, and a column of cosines an expert."""
    experts = len(updates.norms["all"])
    header = ("layers", "count", "expert", "norm", *(f"cosine with expert {e + 1}" for e in range(experts)))
    rows = []
    for kind, norms in updates.norms.items():
        count = updates.layers.get(kind, sum(updates.layers.values()))
        for expert, norm in enumerate(norms.tolist()):
            cosines = (f"{value:.6f}" for value in updates.cosines[kind][expert].tolist())
            rows.append((kind, count, expert + 1, f"{norm:.6g}", *cosines))
    _write(path, header, rows)


def _energy_rows(entry: Energies) -> Iterable[tuple[object, ...]]:
    for signal, values in entry.signals.items():
        names = band_names(values.shape[2])
        for quantity, numbers in (("energy", values), ("share", entry.shares(signal))):
            statistics = spread(numbers)
            for step, timestep in enumerate(entry.timesteps):
                for band, name in enumerate(names):
                    row = _statistics_row(statistics, step, band)
                    yield (entry.model, signal, step + 1, f"{timestep:g}", name, quantity, *row)


def _statistics_row(statistics: Spread, step: int, band: int) -> list[str]:
    parts = (statistics.mean, statistics.std, statistics.low, statistics.high)
    return [f"{float(part[step, band]):.6g}" for part in parts]


def _gate_rows(entry: GatePaths, prompts: Sequence[str]) -> Iterable[tuple[object, ...]]:
    for picture, prompt in enumerate(prompts):
        for step, timestep in enumerate(entry.timesteps):
            for quantity, values in (("gate", entry.gates), ("band", entry.indicator)):
                for index, value in enumerate(values[step, picture].tolist(), 1):
                    place = (entry.adapter, picture + 1, prompt, step + 1, f"{timestep:g}")
                    yield (*place, quantity, index, f"{value:.6f}")


def _write(path: _Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
