"""What a base model looks like, so that an adapter can tell whether it was trained on it.

A fingerprint names the architecture and samples a few weights. It survives a change of precision, of device and of
file format; quantized layers, whose weights cannot be compared, are passed over.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from fera.errors import FeraError

_HELD = "_fera_base_fingerprint"
_TENSORS = 16
_VALUES = 4
# Relative distance up to which two samples count as one model: half precision stays below 0.005, another model of
# the same architecture is near 1.4.
_TOLERANCE = 0.02
# Weights that were rounded to half precision before may fall on the other side of a step of 8 bits.
_TOLERANCE_IN_EIGHT_BITS = 0.06
# What diffusers' layerwise casting keeps weights in, without a scale: rounding alone would be above the tolerance.
_EIGHT_BITS = (torch.float8_e5m2, torch.float8_e4m3fn)  # what the first can hold, the second can


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Fingerprint of a base model, with or without adapters in it.

    Args:
        model: the denoiser.

    Returns:
        JSON-like: `class` (its name), `tensors` (how many weight tensors it has), `sample` (tensor name to
        a few of its values as floats; empty where they cannot be read).
    """
    if (held := vars(model).get(_HELD)) is not None:
        return dict(held)
    tensors = _base_tensors(model)
    names = sorted(tensors)
    chosen = names[:: max(1, len(names) // _TENSORS)][:_TENSORS]
    return {
        "class": type(model).__name__,
        "tensors": len(names),
        "sample": {name: _values(tensors[name]) for name in chosen},
    }


def keep_fingerprint(model: nn.Module, held: dict[str, Any]) -> None:
    """Let a base be known by a fingerprint, whatever becomes of its weights.

    Args:
        model: the denoiser.
        held: as `fingerprint` gave it.
    """
    vars(model)[_HELD] = held


def check_fingerprint(model: nn.Module, expected: dict[str, Any]) -> None:
    """Hold a base model against the fingerprint that an adapter carries.

    Raises:
        FeraError: another architecture, or other weights.
    """
    found, dtypes = fingerprint(model), {name: tensor.dtype for name, tensor in _base_tensors(model).items()}
    sample, tolerance = dict(expected["sample"]), _TOLERANCE
    # A base that is kept in 8 bits has the same weights as far as 8 bits can tell, and so has one that was.
    for name in found["sample"].keys() & sample.keys():
        if dtypes.get(name) in _EIGHT_BITS:
            sample[name], tolerance = _as(dtypes[name], sample[name]), _TOLERANCE_IN_EIGHT_BITS
        elif was := [dtype for dtype in _EIGHT_BITS if _are(dtype, sample[name])]:
            # Of one tensor this may be by chance: that allows no more.
            found["sample"][name] = _as(was[0], found["sample"][name])
    check_same_base(found, expected | {"sample": sample}, tolerance)


def check_same_base(found: dict[str, Any], expected: dict[str, Any], tolerance: float = _TOLERANCE) -> None:
    """Hold the fingerprint of a base against the one that an adapter carries.

    Args:
        found: the found of the base.
        expected: the expected of the adapter.
        tolerance: relative distance of their samples up to which they are one base's.

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
    if distance > tolerance:
        raise FeraError(
            "the adapter was trained on another base: same architecture, but the weights differ by "
            f"{distance:.0%}. {advice}, or, if this base is a close relative and you mean it, set "
            "`base_fingerprint` of its config to None (allow_other_base=True in fera.load_adapter)."
        )


def _base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Matrices and kernels of the base by their names without any adapter."""
    added = {id(tensor) for tensor in added_tensors(model)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        if tensor.ndim >= 2 and id(tensor) not in added:
            plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            # Where diffusers has put an IP-Adapter's projection in the place of the base's own.
            tensors[re.sub("^text_encoder_hid_proj", "encoder_hid_proj", plain)] = tensor
    return tensors


def added_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Weights that came after the base: of PEFT's layers, of an IP-Adapter, of the gate."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            keeps = "base_layer"
        elif isinstance(module, AuxiliaryTrainingWrapper):
            keeps = "original_module"
        elif name.endswith(".processor") or re.search("IPAdapter.*Projection$", type(module).__name__):
            keeps = ""
        else:
            continue
        yield from module.parameters(recurse=False)
        for child, held in module.named_children():
            if child != keeps:
                yield from held.parameters()


def _as(dtype: torch.dtype, values: list[float]) -> list[float]:
    """Values as a dtype holds them."""
    return torch.tensor(values).to(dtype).float().tolist()


def _are(dtype: torch.dtype, values: list[float]) -> bool:
    """Whether values, of five digits, are some that a dtype can hold."""
    return bool(values) and all(
        math.isclose(a, b, rel_tol=1e-4) for a, b in zip(values, _as(dtype, values), strict=True)
    )


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
