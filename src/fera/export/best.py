"""The one gate whose predictions are nearest to the routed ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fera.export.by_layer import best_by_layer, measure_by_layer
from fera.export.gap import Gap, Walk, holder_of, measure_gap, predict_with, record_walk
from fera.export.simplex import least_squares

# How far the first round goes towards one expert alone to see how predictions move; half as far in each further round.
_STRIDE = 0.25
_ROUNDS = 6
# A round that gains less, as a part of the squared error, is the last.
_ENOUGH = 1e-3


BY_LAYER = "best by layer"

# Apart from the seeds of what the gate was chosen by: how good it is, is measured on pictures of their own.
_OTHER_SEED = 1000


@dataclass(frozen=True)
class BestGate:
    """A gate that was chosen by data.

    Args:
        gate: shape (E,), float32.
        gaps: how far it ("best"), the mean of the recorded gates ("mean") and equal weights ("uniform") are from the
            routed adapter, on noise that the gate was not chosen by; "best by layer" too where it was asked for.
        by_layer: gates by the layer's path, shape (E,) each; empty where they were not asked for.
    """

    gate: Tensor
    gaps: Mapping[str, Gap]
    by_layer: Mapping[str, Tensor] = field(default_factory=dict)


def choose_best(
    pipe: Any,
    prompts: Sequence[str],
    *,
    adapter_name: str = "default",
    steps: int = 8,
    seed: int = 0,
    by_layer: bool = False,
) -> BestGate:
    """Draw prompts with the routed adapter, and find the gate whose predictions are nearest.

    Args:
        pipe: a text-to-image pipeline with the adapter active.
        prompts: what to draw; not the ones it was trained on.
        adapter_name: the adapter.
        steps: denoising steps.
        seed: the seed of the noise of the first image; twice as many are drawn as there are prompts.
        by_layer: find gates for each layer too, which takes the memory of training.

    Raises:
        FeraError: there is no such adapter, the pipeline cannot draw, or the experts are no LoRA and have no gates by
            layer.
    """
    walk = record_walk(pipe, prompts, adapter_name=adapter_name, steps=steps, seed=seed)
    mean = walk.trace.mean()
    best = best_gate(pipe, walk, mean, adapter_name=adapter_name)
    layers = best_by_layer(pipe, walk, best, adapter_name=adapter_name) if by_layer else {}
    walk = record_walk(pipe, prompts, adapter_name=adapter_name, steps=steps, seed=seed + _OTHER_SEED)
    candidates = {"uniform": torch.full_like(mean, 1 / len(mean)), "mean": mean, "best": best}
    gaps = {
        name: measure_gap(pipe, walk, lambda step, gate=gate: gate, adapter_name=adapter_name)  # type: ignore[misc]
        for name, gate in candidates.items()
    }
    if by_layer:
        gaps[BY_LAYER] = measure_by_layer(pipe, walk, layers, adapter_name=adapter_name)
    return BestGate(best, gaps, layers)


@torch.no_grad()
def best_gate(pipe: Any, walk: Walk, start: Tensor, *, adapter_name: str = "default") -> Tensor:
    r"""The gate, of weights at least 0 that sum to 1, whose predictions are nearest to those of a walk.

    .. math:: \min_g \sum_c \lVert \epsilon_c(g) - \epsilon_c \rVert^2

    over the walk's calls c. Predictions are nearly linear in the gate, so each round (Gauss-Newton) measures how they
    move towards each expert, and solves for the gate as if they went on like that.

    Args:
        pipe: the pipeline that the walk was recorded with.
        walk: the calls, and the routed answers.
        start: gate to begin with, shape (E,), such as the mean of the walk.
        adapter_name: the adapter.

    Returns:
        Shape (E,), float32: the best of those that were measured, `start` among them.
    """
    denoiser = holder_of(pipe, adapter_name)
    experts = torch.eye(len(start))
    best, gate = start, start
    least: float | None = None
    for stride in (_STRIDE / 2**number for number in range(_ROUNDS)):
        # (R - P) and the moves of P, in each other's products: small, whatever the size of a prediction.
        gram, towards, error = torch.zeros(len(start), len(start)).double(), torch.zeros(len(start)).double(), 0.0
        for call, routed in zip(walk.calls, walk.routed, strict=True):
            here = predict_with(denoiser, adapter_name, gate, call)
            there = [predict_with(denoiser, adapter_name, gate.lerp(expert, stride), call) for expert in experts]
            jacobian = torch.stack([(one - here).flatten() / stride for one in there]).double()
            missing = (routed - here).flatten().double()
            gram += (jacobian @ jacobian.T).cpu()
            towards += (jacobian @ missing).cpu()
            error += float(missing.square().sum())
        if least is not None and error >= least:
            break
        gained = float("inf") if least is None else least - error
        best, least = gate, error
        if gained < _ENOUGH * error:
            break
        gate = least_squares(gram, towards, gate).float()
    return best
