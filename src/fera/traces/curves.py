"""What a trace says: gates and band shares along the denoising steps."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fera.method.routing import Routing


@dataclass(frozen=True)
class RoutingCurves:
    """How one adapter was routed along the denoising steps, over all samples of a trace.

    Args:
        adapter: its name; where two denoisers hold one of that name, with the denoiser's: "ink (transformer_2)".
        timesteps: the timesteps of the S steps, in the order of denoising.
        gates: mean gate of each expert, S lists of E.
        gates_std: its deviation between samples, likewise.
        indicator: mean share of each band, S lists of K, low to high frequency.
        indicator_std: its deviation between samples, likewise.
    """

    adapter: str
    timesteps: list[float]
    gates: list[list[float]]
    gates_std: list[list[float]]
    indicator: list[list[float]]
    indicator_std: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def routing_curves(routings: Sequence[Routing]) -> list[RoutingCurves]:
    """Summarize a trace, sample by sample: batches and the halves of guidance count alike.

    Args:
        routings: what `fera.trace` recorded, of any number of images with the same steps.

    Returns:
        One entry an adapter and denoiser, in the order of their first forward.
    """
    groups: dict[tuple[str, str], list[Routing]] = {}
    for routing in routings:
        groups.setdefault((routing.adapter, routing.component), []).append(routing)
    adapters = [adapter for adapter, _ in groups]
    return [
        _curves(adapter if adapters.count(adapter) == 1 else f"{adapter} ({component})", members)
        for (adapter, component), members in groups.items()
    ]


def save_csv(curves: Sequence[RoutingCurves], path: str | os.PathLike[str]) -> None:
    """Write curves as a table: adapter, step, timestep, quantity (gate or band), index, mean, std; counted from 1."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("adapter", "step", "timestep", "quantity", "index", "mean", "std"))
        for curve in curves:
            for quantity, means, stds in (
                ("gate", curve.gates, curve.gates_std),
                ("band", curve.indicator, curve.indicator_std),
            ):
                for step, (timestep, row, spread) in enumerate(zip(curve.timesteps, means, stds, strict=True), 1):
                    for index, (mean, std) in enumerate(zip(row, spread, strict=True), 1):
                        table.writerow(
                            (curve.adapter, step, f"{timestep:g}", quantity, index, f"{mean:.6f}", f"{std:.6f}")
                        )


def _curves(adapter: str, routings: Sequence[Routing]) -> RoutingCurves:
    # Every batch of images runs through the same timesteps: samples meet where their timestep is the same.
    samples: dict[float, list[tuple[Tensor, Tensor]]] = {}
    for number, routing in enumerate(routings):
        count = routing.gates.shape[0]
        moment = torch.tensor(float(number)) if routing.timestep is None else routing.timestep.float()
        for key, gate, shares in zip(moment.expand(count).tolist(), routing.gates, routing.indicator, strict=True):
            samples.setdefault(key, []).append((gate, shares))
    gates = [torch.stack([gate for gate, _ in rows]) for rows in samples.values()]
    shares = [torch.stack([share for _, share in rows]) for rows in samples.values()]
    return RoutingCurves(
        adapter,
        list(samples),
        [rows.mean(0).tolist() for rows in gates],
        [rows.std(0, correction=0).tolist() for rows in gates],
        [rows.mean(0).tolist() for rows in shares],
        [rows.std(0, correction=0).tolist() for rows in shares],
    )
