"""Gates along the denoising steps, picture by picture, and what they say of the router."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fera.method.router import COLLAPSE, gate_entropy
from fera.method.routing import Routing


@dataclass(frozen=True)
class GatePaths:
    """How one adapter was routed while pictures were drawn.

    Args:
        adapter: its name; where two denoisers hold one of that name, with the denoiser's: "ink (transformer_2)".
        timesteps: the timesteps of the S forwards, in order; their number where the denoiser got none.
        gates: shape (S, N, E), float32.
        indicator: shape (S, N, K), float32, low to high frequency.
    """

    adapter: str
    timesteps: list[float]
    gates: Tensor
    indicator: Tensor

    @property
    def use(self) -> Tensor:
        """Mean gate of each expert over all steps and pictures, shape (E,); sums to 1."""
        return self.gates.mean(dim=(0, 1))

    @property
    def entropy(self) -> Tensor:
        """Mean entropy of a gate at each step, shape (S,): 1 for a uniform gate, 0 for a single expert."""
        return gate_entropy(self.gates).mean(dim=1)

    @property
    def use_entropy(self) -> float:
        """Entropy of `use`: 1 where all experts serve alike over a drawing, 0 where one does all."""
        return float(gate_entropy(self.use))

    @property
    def collapsed(self) -> int | None:
        """The expert, from 0, that holds at least 0.8 of the mean gate at every step; None where there is none."""
        if self.gates.shape[2] == 1:
            return None
        held = (self.gates.mean(dim=1) >= COLLAPSE).all(dim=0)
        return int(held.nonzero()[0]) if held.any() else None

    @property
    def shared_motion(self) -> float | None:
        """Share of the gate's variance that all pictures share, step by step; None where the gate does not move."""
        total = (self.gates - self.gates.mean(dim=(0, 1))).square().mean()
        between = (self.gates.mean(dim=1) - self.gates.mean(dim=(0, 1))).square().mean()
        return float(between / total) if total > STILL**2 else None

    @property
    def correlation(self) -> Tensor:
        """Pearson's correlation of each expert's gate with each band's share, shape (E, K); 0 where one is still."""
        gates, shares = (rows.flatten(0, 1).double() for rows in (self.gates, self.indicator))
        gates, shares = (rows - rows.mean(dim=0) for rows in (gates, shares))
        sizes = gates.norm(dim=0)[:, None] * shares.norm(dim=0)[None]
        count = len(gates)
        moving = (gates.norm(dim=0) > STILL * math.sqrt(count))[:, None] & (
            shares.norm(dim=0) > STILL * math.sqrt(count)
        )
        return torch.where(moving, gates.T @ shares / sizes.clamp_min(1e-12), 0.0).float()


# Deviations below this are no movement.
STILL = 1e-4


def one_a_picture(routings: Sequence[Routing], pictures: int) -> list[Routing]:
    """The routings of a batch without what guidance repeats.

    Guidance passes each latent twice, in one doubled batch or in two calls; both have the same latent and so the same
    gate, and counting both would make N pictures look like 2 N.

    Args:
        routings: what `fera.trace` recorded while one batch was drawn.
        pictures: N, in the batch.

    Returns:
        Routings of N rows each, in order.
    """
    kept: list[Routing] = []
    last: dict[tuple[str, str], Routing] = {}
    for routing in routings:
        timestep = routing.timestep
        if timestep is not None and timestep.ndim and len(timestep) > pictures:
            timestep = timestep[:pictures]
        own = replace(
            routing, timestep=timestep, indicator=routing.indicator[:pictures], gates=routing.gates[:pictures]
        )
        key = (routing.adapter, routing.component)
        if key not in last or not _same_call(last[key], own):
            kept.append(own)
        last[key] = own
    return kept


def gate_paths(batches: Sequence[Sequence[Routing]]) -> list[GatePaths]:
    """Paths of all pictures from the traces of their batches.

    Args:
        batches: for each batch its routings, as `one_a_picture` leaves them; all with the same steps.

    Returns:
        One entry an adapter and denoiser, in the order of their first forward.
    """
    keys = list(dict.fromkeys((routing.adapter, routing.component) for batch in batches for routing in batch))
    names = [adapter for adapter, _ in keys]
    paths = []
    for adapter, component in keys:
        rows = [[r for r in batch if (r.adapter, r.component) == (adapter, component)] for batch in batches]
        steps = list(zip(*rows, strict=True))
        paths.append(
            GatePaths(
                adapter if names.count(adapter) == 1 else f"{adapter} ({component})",
                [_moment(step[0], number) for number, step in enumerate(steps)],
                torch.stack([torch.cat([routing.gates for routing in step]) for step in steps]),
                torch.stack([torch.cat([routing.indicator for routing in step]) for step in steps]),
            )
        )
    return paths


def _same_call(one: Routing, other: Routing) -> bool:
    if one.timestep is None or other.timestep is None:
        same_time = one.timestep is other.timestep
    else:
        same_time = torch.equal(one.timestep, other.timestep)
    return same_time and torch.equal(one.indicator, other.indicator)


def _moment(routing: Routing, number: int) -> float:
    return float(number) if routing.timestep is None else float(routing.timestep.flatten()[0])
