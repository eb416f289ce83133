"""Figures of the steps between two lines of the log."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fera.method.router import COLLAPSE, gate_entropy


@dataclass
class Metrics:
    """What the samples of one or more steps came to, where it was computed: counting waits for no device.

    Args:
        losses: denoising losses, each of shape (B,).
        consistencies: consistency loss of the forward that a sample was in, each of shape (B,); empty where it is off.
        gates: each of shape (B, E); empty where nothing is routed.
        shares: the shares of the noisy latents' energy by band, each of shape (B, K); empty where nothing is routed.
        levels: noise levels of the same samples, from 0 (clean) to 1 (pure noise), each of shape (B,); likewise.
        updates: of each step, the share of the layers in which it updated each expert, shape (E,); empty where updates
            are not routed.
    """

    losses: list[Tensor] = field(default_factory=list)
    consistencies: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    levels: list[Tensor] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many."""
        return sum(len(losses) for losses in self.losses)

    def add(
        self,
        losses: Tensor,
        consistency: Tensor | None,
        gates: Tensor | None,
        shares: Tensor | None,
        levels: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            losses: shape (B,).
            consistency: scalar or None.
            gates: shape (B, E), or None where nothing is routed.
            shares: shape (B, K), or None where nothing is routed.
            levels: shape (B,), or None where nothing is routed.
        """
        _append(self.losses, losses)
        if consistency is not None:
            _append(self.consistencies, consistency.expand(len(losses)))
        if gates is not None and shares is not None:
            _append(self.gates, gates)
            _append(self.shares, shares)
            if levels is not None:
                _append(self.levels, levels)

    def add_updates(self, shares: Tensor) -> None:
        """Count a step whose updates were routed.

        Args:
            shares: the share of the layers in which it updated each expert, shape (E,).
        """
        _append(self.updates, shares[None])

    def averages(self) -> dict[str, Any]:
        """Averages over the samples, as they are logged; nothing where there were none."""
        if not self.losses:  # all steps were skipped
            return {}
        averages: dict[str, Any] = {"loss": _mean(_all(self.losses))}
        if self.consistencies:
            averages["consistency"] = _mean(_all(self.consistencies))
        if self.gates:
            gates = _all(self.gates)
            averages["gate_entropy"] = _mean(gate_entropy(gates))
            averages["gates"] = [_mean(expert) for expert in gates.T]
            shares = _all(self.shares)
            averages["bands"] = [_mean(band) for band in shares.T]
            # Of a checkpoint from before levels were kept, some are missing.
            if self.levels and len(levels := _all(self.levels)) == len(gates):
                averages["gates_by_noise"] = _by_noise(gates, levels)
                averages["bands_by_noise"] = _by_noise(shares, levels)
        if self.updates:
            averages["updates"] = [_mean(expert) for expert in _all(self.updates).T]
        return averages

    def distributions(self) -> dict[str, Tensor]:
        """Values of each sample that trackers show as histograms: "gates" (N, E) and "bands" (N, K), on the CPU."""
        return {"gates": _all(self.gates), "bands": _all(self.shares)} if self.gates else {}


# Parts of the noise levels by which gates and shares are logged, the cleanest first.
NOISE_PARTS = 8
# From so many forwards on they are held as one tensor: on a GPU each takes half a kilobyte at least.
_APART = 256


def _append(parts: list[Tensor], part: Tensor) -> None:
    parts.append(part.detach())
    if len(parts) == _APART:
        parts[:] = [torch.cat([held.to(part.device) for held in parts])]  # restored ones are on the CPU


def _all(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts]).double()


def _by_noise(rows: Tensor, levels: Tensor) -> list[list[float] | None]:
    """Means of rows (N, D) whose noise level is in each of `NOISE_PARTS` equal parts of [0, 1]; None where none is."""
    part = (levels * NOISE_PARTS).long().clamp(0, NOISE_PARTS - 1)
    return [
        [_mean(column) for column in chosen.T] if len(chosen := rows[part == number]) else None
        for number in range(NOISE_PARTS)
    ]


def _mean(values: Tensor) -> float:
    return _rounded(float(values.mean()))


def collapse(averages: dict[str, Any]) -> str | None:
    """A line about a router that answers with one expert alone, or None.

    Args:
        averages: as `Metrics.averages` gives them.
    """
    gates = averages.get("gates", [])
    if len(gates) < 2 or max(gates) < COLLAPSE:
        return None
    expert = gates.index(max(gates))
    return (
        f"the router has collapsed: expert {expert + 1} of {len(gates)} holds {gates[expert]:.2f} of the gate, the "
        'others learn next to nothing. Lower train.router_lr_ratio, or set adapter.router_init = "partition"'
    )


def in_words(averages: dict[str, Any], samples_per_second: float) -> str:
    """Averages for the progress bar."""
    parts = [f"loss {averages['loss']:.4f}"] if "loss" in averages else []
    if "consistency" in averages:
        parts.append(f"consistency {averages['consistency']:.4f}")
    if "gate_entropy" in averages:
        parts.append(f"gate entropy {averages['gate_entropy']:.2f}")
    parts.append(f"{samples_per_second:.1f} samples/s")
    return " · ".join(parts)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
