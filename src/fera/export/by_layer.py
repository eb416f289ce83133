"""A gate for each layer, whose predictions together are nearest to the routed ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.export.gap import Gap, Walk, gap_of, holder_of, predict_with
from fera.export.simplex import on_simplex

# Steps of projected descent, and how far the first moves the weight that it moves most.
_STEPS = 24
_FIRST = 0.05
# Weights that move less than this are there.
_STILL = 1e-4


def best_by_layer(pipe: Any, walk: Walk, start: Tensor, *, adapter_name: str = "default") -> dict[str, Tensor]:
    r"""The gates, one a layer, of weights at least 0 that sum to 1, whose predictions are nearest to those of a walk.

    .. math:: \min_{g_1, g_2, \dots} \sum_c \lVert \epsilon_c(g_1, g_2, \dots) - \epsilon_c \rVert^2

    over the walk's calls c. It takes a backward pass a call and step, and so the memory of training.

    Args:
        pipe: the pipeline that the walk was recorded with.
        walk: the calls, and the routed answers.
        start: gate of all layers to begin with, shape (E,), such as that of `best_gate`.
        adapter_name: the adapter, whose experts are LoRAs.

    Returns:
        By the layer's path, shape (E,), float32: the best of those that were measured, `start` among them.

    Raises:
        FeraError: the experts are no LoRA.
    """
    denoiser = holder_of(pipe, adapter_name)
    downs = _downs(denoiser, adapter_name)
    if not downs:
        raise FeraError("a gate for each layer is for LoRA experts; take one gate for all of them")
    gates = start.double().expand(len(downs), -1).clone()
    error, slope = _error_and_slope(denoiser, adapter_name, downs, gates, walk)
    stride = _FIRST / max(float(slope.abs().max()), 1e-30)
    for _ in range(_STEPS):
        there = torch.stack([on_simplex(row) for row in gates - stride * slope])
        moved = there - gates
        if float(moved.abs().max()) < _STILL:
            break
        error_there, slope_there = _error_and_slope(denoiser, adapter_name, downs, there, walk)
        if error_there >= error:
            stride /= 4
            continue
        # The next stride is that of the curvature along this one (Barzilai and Borwein, 1988).
        bent = float((moved * (slope_there - slope)).sum())
        stride = float(moved.square().sum()) / bent if bent > 0 else 2 * stride
        gates, error, slope = there, error_there, slope_there
    return {path: gate.float() for path, gate in zip(downs, gates, strict=True)}


def measure_by_layer(pipe: Any, walk: Walk, gates: Mapping[str, Tensor], *, adapter_name: str = "default") -> Gap:
    """Compare gates, one a layer, with the routed adapter on the inputs of a walk.

    Args:
        pipe: the pipeline that the walk was recorded with.
        walk: the calls, and the routed answers.
        gates: by the layer's path, shape (E,).
        adapter_name: the adapter.
    """
    denoiser = holder_of(pipe, adapter_name)
    downs = _downs(denoiser, adapter_name)
    held = torch.stack([gates[path] for path in downs])
    even = torch.full_like(held[0], 1 / held.shape[1]).float()
    with torch.no_grad(), _scaled(downs, held):
        return gap_of(walk, lambda call, step: predict_with(denoiser, adapter_name, even, call))


def _downs(denoiser: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The down matrices of an adapter's experts by the layer's path."""
    found = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            weight: Any = module.lora_A[adapter].weight
            found[path] = weight
    return found


def _error_and_slope(
    denoiser: nn.Module, adapter: str, downs: Mapping[str, nn.Parameter], gates: Tensor, walk: Walk
) -> tuple[float, Tensor]:
    """The squared error over all calls, and how it changes with each gate, shape (layers, E)."""
    slope, error = torch.zeros_like(gates), 0.0
    even = torch.full_like(gates[0], 1 / gates.shape[1]).float()
    count = gates.shape[1]
    before = {path: weight.detach().clone() for path, weight in downs.items()}
    with torch.enable_grad(), _scaled(downs, gates):
        for call, routed in zip(walk.calls, walk.routed, strict=True):
            cost = (predict_with(denoiser, adapter, even, call) - routed).double().square().sum()
            slopes = torch.autograd.grad(cost, list(downs.values()))
            # Ranks are weighted by E g / E: a row's slope, against the row as it is in the file.
            own = [(one * before[path]).flatten(1).sum(dim=1) for path, one in zip(downs, slopes, strict=True)]
            slope += torch.stack([row.view(count, -1).sum(dim=1) for row in own]).to(slope) * count
            error += float(cost.detach())
    return error, slope


@contextmanager
def _scaled(downs: Mapping[str, nn.Parameter], gates: Tensor) -> Iterator[None]:
    """Down matrices whose ranks are weighted by a gate of their own, on top of an even one."""
    kept = {path: (weight.detach().clone(), weight.requires_grad) for path, weight in downs.items()}
    try:
        with torch.no_grad():
            for gate, weight in zip(gates, downs.values(), strict=True):
                each = (gate * len(gate)).repeat_interleave(len(weight) // len(gate)).to(weight)
                weight.mul_(each.view(-1, *[1] * (weight.ndim - 1)))
                weight.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for path, weight in downs.items():
                original, trained = kept[path]
                weight.copy_(original)
                weight.requires_grad_(trained)
