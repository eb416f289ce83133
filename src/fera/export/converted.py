"""Experts of other schemes than LoRA as a plain LoRA: the change of each layer's weight, cut to its leading ranks."""

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fera.adapters.file import AdapterFile
from fera.errors import FeraError
from fera.export.gap import holder_of
from fera.export.pair import Pair
from fera.export.static import StaticLora, text_pairs
from fera.pipelines.adapters import load_adapter, unload
from fera.tuner.mixture import ExpertMixture

_NAME = "converted"


@dataclass(frozen=True)
class Converted:
    """A LoRA that stands for experts of another scheme.

    Args:
        lora: the LoRA.
        error: root mean square of what was cut from the changes of the weights, relative to the changes.
    """

    lora: StaticLora
    error: float


@torch.no_grad()
def converted_lora(
    pipe: Any, adapter: str | os.PathLike[str], file: AdapterFile, gate: Tensor, energy: float
) -> Converted:
    r"""Fix the gate of an adapter whose experts are no LoRA, and cut what each layer's weight changes by.

    .. math:: \Delta W = \sum_e g_e (W_e - W) \approx B A

    :math:`W_e` is what PEFT merges expert e into. The cut is that of a singular value decomposition, the nearest there
    is of its rank.

    Args:
        pipe: pipeline of the base without adapters; it is left as it was.
        adapter: as `fera.load_adapter` takes it.
        file: the same, opened.
        gate: shape (E,).
        energy: part of the squared singular values that stays in each layer, above 0 up to 1: it chooses the ranks.

    Raises:
        FeraError: an expert changes more than weights (a bias), or cannot be merged.
    """
    if not 0 < energy <= 1:
        raise FeraError(f"energy must be above 0 and at most 1, got {energy:g}")
    load_adapter(pipe, adapter, adapter_name=_NAME)
    try:
        denoiser = holder_of(pipe, _NAME)
        layers: dict[str, Pair] = {}
        cut, whole = 0.0, 0.0
        for path, layer in denoiser.named_modules():
            if isinstance(layer, ExpertMixture) and _NAME in layer.fera_experts:
                change = _change(path, layer, gate)
                layers[path], left = _cut(change, energy)
                cut, whole = cut + left, whole + float(change.double().square().sum())
    finally:
        unload(pipe, _NAME)
    lora = StaticLora(layers, gate, file.config, text_pairs(file))
    return Converted(lora, (cut / whole) ** 0.5 if whole > 0 else 0.0)


def _change(path: str, layer: ExpertMixture, gate: Tensor) -> Tensor:
    """What the weight of a layer changes by under a gate, in float32."""
    base: Any = layer.get_base_layer()
    total = torch.zeros_like(base.weight, dtype=torch.float32)
    experts: Any = layer.fera_experts[_NAME]
    for weight, expert in zip(gate.tolist(), experts, strict=True):
        alone: Any = copy.deepcopy(expert)  # with its base layer, which the others have too
        alone.merge(adapter_names=[_NAME])
        merged = alone.get_base_layer()
        if base.bias is not None and not torch.equal(merged.bias, base.bias):
            raise FeraError(f"the experts change the bias of {path}, which no LoRA holds")
        total += weight * (merged.weight.float() - base.weight.float())
    return total


def _cut(change: Tensor, energy: float) -> tuple[Pair, float]:
    """The LoRA of a change, and the energy that it leaves out."""
    left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    shares = values.double().square().cumsum(0)
    # A layer that does not change keeps a rank of zeros: formats have a LoRA for each layer.
    rank = int((shares < energy * shares[-1]).sum()) + 1 if shares[-1] > 0 else 1
    rank = min(rank, len(values))
    down, up = right[:rank], left[:, :rank] * values[:rank]
    if change.ndim > 2:
        down, up = down.view(rank, *change.shape[1:]), up.view(*up.shape, *[1] * (change.ndim - 2))
    return Pair(down.contiguous(), up.contiguous()), float(shares[-1] - shares[rank - 1])
