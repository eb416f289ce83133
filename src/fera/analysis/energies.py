"""Band energies of latents along denoising, or along noise levels, of many pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.pipelines.recording import DenoisingStep, record_denoising


@dataclass(frozen=True)
class Spread:
    """Statistics over the pictures, each of shape (S, K): mean, deviation, 10th and 90th percentile."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Energies:
    """Band energies of several signals, over pictures.

    Args:
        model: "base", or the adapter's name.
        timesteps: the timesteps of the S steps or noise levels, noise to clean.
        signals: by the signal's name, shape (S, N, K), float32: S steps, N pictures, K bands, low to high frequency;
            mean square of the band over the values of a latent, in squared latent units.
    """

    model: str
    timesteps: list[float]
    signals: dict[str, Tensor]

    def shares(self, signal: str) -> Tensor:
        """Each band's share of the energy of a signal, shape (S, N, K)."""
        energies = self.signals[signal]
        total = energies.sum(dim=2, keepdim=True)
        return torch.where(total > 0, energies / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / energies.shape[2])


@dataclass(frozen=True)
class StepEnergies:
    """Band energies of one step of a batch.

    Args:
        component: the denoiser.
        timestep: as the scheduler got it.
        signals: "latent", "clean" and "prediction", each of shape (B, K), float32, on the CPU.
    """

    component: str
    timestep: float
    signals: dict[str, Tensor]


def spread(values: Tensor) -> Spread:
    """Statistics over pictures.

    Args:
        values: shape (S, N, K), N at least 1.
    """
    edges = torch.quantile(values, torch.tensor([0.1, 0.9], dtype=values.dtype), dim=1)
    return Spread(values.mean(dim=1), values.std(dim=1, correction=0), edges[0], edges[1])


def mean_square(bands: FrequencyBands, latent: Tensor) -> Tensor:
    """Energy of each band over the number of a latent's values, shape (B, K), float32, on the CPU.

    Args:
        bands: K bands.
        latent: shape (B, C, H, W) or (B, C, L).
    """
    return bands.energies(latent.float()).cpu() / latent[0].numel()


@contextmanager
def record_energies(pipe: Any, bands: FrequencyBands) -> Iterator[list[StepEnergies]]:
    """Record the band energies of every denoising step in the block, which draws one batch.

    Args:
        pipe: a diffusers pipeline.
        bands: what to measure with.

    Yields:
        A list that grows by one entry a step.

    Raises:
        FeraError: as `record_denoising`.
    """
    steps: list[StepEnergies] = []

    def receive(step: DenoisingStep) -> None:
        signals = {"latent": step.latent, "clean": step.clean, "prediction": step.prediction}
        steps.append(
            StepEnergies(
                step.component, step.timestep, {name: mean_square(bands, tensor) for name, tensor in signals.items()}
            )
        )

    with record_denoising(pipe, receive):
        yield steps


def join_batches(model: str, batches: Sequence[Sequence[StepEnergies]]) -> Energies:
    """Energies of all pictures from those of their batches.

    Args:
        model: "base", or the adapter's name.
        batches: what `record_energies` recorded of each, at least one.

    Raises:
        FeraError: nothing was recorded, or batches ran through different timesteps.
    """
    clocks = {tuple(step.timestep for step in steps) for steps in batches}
    if len(clocks) != 1 or not (clock := clocks.pop()):
        raise FeraError("batches of one analysis must run through the same denoising steps, at least one")
    names = batches[0][0].signals
    return Energies(
        model,
        list(clock),
        {
            name: torch.stack([torch.cat([steps[s].signals[name] for steps in batches]) for s in range(len(clock))])
            for name in names
        },
    )
