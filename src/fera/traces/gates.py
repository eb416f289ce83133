"""The one gate of a static LoRA: uniform, given, or the mean of a recorded trace."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.routing import Routing
from fera.traces.curves import routing_curves

CHOICES = '"uniform", one weight an expert such as [0.2, 0.3, 0.5], or what fera.trace recorded, for its mean'
_COLUMNS = ["adapter", "step", "timestep", "quantity", "index", "mean", "std"]
# Gates are written with a few digits in files and by hand.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GateTrace:
    """Gates of one adapter along the denoising steps.

    Args:
        timesteps: the timesteps of the S steps, in the order of denoising.
        gates: mean gate at each step, shape (S, E), float32.
    """

    timesteps: list[float]
    gates: Tensor

    def mean(self) -> Tensor:
        """Mean gate, every step counting alike, shape (E,)."""
        return self.gates.mean(dim=0)

    def split(self, count: int) -> list["GateTrace"]:
        """Ranges of neighbouring steps, as even as can be.

        Args:
            count: the count of ranges, from 1 to S.

        Raises:
            FeraError: there are fewer steps than ranges.
        """
        steps = len(self.timesteps)
        if not 1 <= count <= steps:
            raise FeraError(f"a schedule of {count} needs as many denoising steps, at least 1; the trace has {steps}")
        edges = [round(steps * i / count) for i in range(count + 1)]
        return [
            GateTrace(self.timesteps[start:end], self.gates[start:end])
            for start, end in zip(edges[:-1], edges[1:], strict=True)
        ]


GateChoice: TypeAlias = str | Sequence[float] | Sequence[Routing] | GateTrace


def choose_gate(choice: GateChoice | None, num_experts: int, adapter: str | None = None) -> Tensor:
    """The gate that a choice stands for.

    Args:
        choice: "uniform", E weights that sum to 1, a list that `fera.trace` recorded, or a `GateTrace`.
        num_experts: E.
        adapter: name of the adapter, to find it in a recorded list.

    Returns:
        Shape (E,), float32, on the CPU.

    Raises:
        FeraError: no choice, weights that are no gate, or a trace without this adapter.
    """
    if choice is None:
        raise FeraError(f"say which gate: the experts are mixed anew at every step, so give gate= as {CHOICES}")
    if isinstance(choice, str):
        if choice != "uniform":
            raise FeraError(f"unknown gate {choice!r}; give {CHOICES}")
        return torch.full((num_experts,), 1 / num_experts)
    if isinstance(choice, list | tuple) and choice and isinstance(choice[0], Routing):
        choice = trace_of(choice, adapter)
    if isinstance(choice, GateTrace):
        if choice.gates.shape[1] != num_experts:
            raise FeraError(f"the trace has gates of {choice.gates.shape[1]} experts, the adapter has {num_experts}")
        return choice.mean()
    return _given(choice, num_experts)


def trace_of(routings: Sequence[Routing], adapter: str | None = None) -> GateTrace:
    """Gates along the steps from what `fera.trace` recorded.

    Args:
        routings: the recorded list.
        adapter: name of the adapter; the only one when left out.

    Raises:
        FeraError: nothing was recorded, or the adapter is not in it, or not the only one.
    """
    curves = {curve.adapter: curve for curve in routing_curves(routings)}
    curve = curves[_only(list(curves), adapter, "the trace")]
    return GateTrace(curve.timesteps, torch.tensor(curve.gates))


def read_trace(path: str | os.PathLike[str], adapter: str | None = None) -> GateTrace:
    """Gates along the steps from the `gates.csv` of `fera generate --trace`.

    Args:
        path: the file.
        adapter: name of the adapter in it; the only one when left out.

    Raises:
        FeraError: the file cannot be read or is no such table, or the adapter is not in it, or not the only one.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames != _COLUMNS:
                raise FeraError(f"{path} is no trace, which is the gates.csv that fera generate --trace writes")
            rows = [row for row in table if row["quantity"] == "gate"]
        name = _only(list(dict.fromkeys(row["adapter"] for row in rows)), adapter, str(path))
        steps: dict[int, tuple[float, list[float]]] = {}
        for row in rows:
            if row["adapter"] == name:
                steps.setdefault(int(row["step"]), (float(row["timestep"]), []))[1].append(float(row["mean"]))
        return GateTrace(
            [timestep for timestep, _ in steps.values()], torch.tensor([gate for _, gate in steps.values()])
        )
    except FeraError:
        raise
    except OSError as error:
        raise FeraError(f"the trace {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise FeraError(f"the trace {path} is damaged: {error}; write it again with fera generate --trace") from error


def _given(weights: Sequence[float] | Sequence[Routing], num_experts: int) -> Tensor:
    try:
        gate = [float(weight) for weight in weights]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise FeraError(f"{weights!r} is no gate; give {CHOICES}") from None
    if len(gate) != num_experts:
        raise FeraError(f"a gate of this adapter has {num_experts} weights, one an expert; got {len(gate)}: {gate}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in gate) or abs(sum(gate) - 1) > _SUM_TOLERANCE:
        raise FeraError(f"a gate's weights are at least 0 and sum to 1; got {gate}, which sum to {sum(gate):g}")
    return torch.tensor(gate)


def _only(names: list[str], wanted: str | None, where: str) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is not None and wanted in names:
        return wanted
    missing = "" if wanted is None else f" and no {wanted!r}"
    raise FeraError(
        f"{where} holds the adapters: {', '.join(names) or 'none'}{missing}; record a trace of the one adapter alone"
    )
