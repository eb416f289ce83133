"""What a base model looks like, so that an adapter can tell whether it was trained on it.

A fingerprint names the architecture and samples a few weights. It survives a change of precision, of device and of
file format; quantized layers, whose weights cannot be compared, are passed over.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.format import EXPERTS, GATE

_TENSORS = 16
_VALUES = 4
# Relative distance up to which two samples count as one model: half precision stays below 0.005, another model of
# the same architecture is near 1.4.
_TOLERANCE = 0.02


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Fingerprint of a base model, with or without adapters in it.

    Args:
        model: the denoiser.

    Returns:
        JSON-like: `class` (its name), `tensors` (how many weight tensors it has), `sample` (tensor name to
        a few of its values as floats; empty where they cannot be read).
    """
    tensors = _base_tensors(model)
    names = sorted(tensors)
    chosen = names[:: max(1, len(names) // _TENSORS)][:_TENSORS]
    return {
        "class": type(model).__name__,
        "tensors": len(names),
        "sample": {name: _values(tensors[name]) for name in chosen},
    }


def check_fingerprint(model: nn.Module, expected: dict[str, Any]) -> None:
    """Hold a base model against the fingerprint that an adapter carries.

    Raises:
        FeraError: another architecture, or other weights.
    """
    check_same_base(fingerprint(model), expected)


def check_same_base(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold the fingerprint of a base against the one that an adapter carries.

    Raises:
        FeraError: another architecture, or other weights.
    """
    advice = "Load the adapter into the base it was trained on (`fera inspect` names it)"
    if found["class"] != expected["class"]:
        raise FeraError(
            f"the adapter was trained on a {expected['class']}, but this base is a {found['class']}. {advice}."
        )
    if found["sample"].keys() != expected["sample"].keys() or found["tensors"] != expected["tensors"]:
        raise FeraError(
            f"the adapter was trained on a {expected['class']} with {expected['tensors']} weight tensors, this base "
            f"has {found['tensors']} and other layers. {advice}."
        )
    distance = _distance(found["sample"], expected["sample"])
    if distance > _TOLERANCE:
        raise FeraError(
            "the adapter was trained on another base: same architecture, but the weights differ by "
            f"{distance:.0%}. {advice}, or, if this base is a close relative and you mean it, set "
            "`base_fingerprint` of its config to None (allow_other_base=True in fera.load_adapter)."
        )


def _base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Matrices and kernels of the base by their names without any adapter."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        adapted = ".lora_" in name or f".{EXPERTS}." in name or name.startswith(f"{GATE}.")
        if tensor.ndim >= 2 and not adapted:
            tensors[name.replace(".base_layer.", ".")] = tensor
    return tensors


def _values(tensor: Tensor) -> list[float]:
    # A quantized or offloaded tensor cannot be compared: its layout is not the weight's.
    if tensor.is_meta or not tensor.is_floating_point() or type(tensor) not in (Tensor, nn.Parameter):
        return []
    flat = tensor.detach().reshape(-1)
    # In integers: single precision rounds places in large tensors, on each device its own way, and past their end.
    places = [number * (flat.numel() - 1) // (_VALUES - 1) for number in range(_VALUES)]
    return [float(f"{value:.5g}") for value in flat[torch.tensor(places, device=flat.device)].float().tolist()]


def _distance(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    pairs = [
        pair
        for name in expected
        if found[name] and expected[name]
        for pair in zip(found[name], expected[name], strict=True)
    ]
    scale = math.sqrt(sum(b * b for _, b in pairs))
    if scale == 0:
        return 0.0
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / scale
