"""Weights of diffusers' in ComfyUI's model by the names that an export uses: predictions that are alike prove them."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from comfyui_engine import copy_weights
from torch import nn

from fera.export.comfyui import layer_in_comfyui
from fera.export.comfyui.own import FEED_FORWARD, ordered


def copy_by_names(denoiser: nn.Module, model: Any, others: Mapping[str, str], beside: tuple[str, ...] = ()) -> None:
    """Give ComfyUI's model the weights of diffusers'.

    Args:
        denoiser: diffusers'.
        model: ComfyUI's.
        others: patterns of the names of weights that are of no layer, such as those of norms, to ComfyUI's; the first
            that fits a whole name counts.
        beside: as `copy_weights`.
    """
    outputs = {
        name.removesuffix(".weight"): len(weight)
        for name, weight in model.diffusion_model.state_dict().items()
        if name.endswith(".weight")
    }
    names = {
        name: _place(type(denoiser).__name__, name, tensor, others, outputs)
        for name, tensor in denoiser.state_dict().items()
    }
    beside += tuple(_copy_second_halves(denoiser, model.diffusion_model))
    copy_weights(denoiser, model, {name: place for name, place in names.items() if place is not None}, beside)


def _copy_second_halves(denoiser: nn.Module, own_model: nn.Module) -> list[str]:
    """Of layers that are two in ComfyUI: what they are called there."""
    held, names = own_model.state_dict(), []
    for name, tensor in denoiser.state_dict().items():
        layer, _, side = name.rpartition(".")
        own = layer_in_comfyui(type(denoiser).__name__, layer)
        if own is not None and own.second:
            names.append(f"{own.second}.{side}")
            held[names[-1]].copy_(tensor.chunk(2)[1])
    return names


def _place(kind: str, name: str, tensor: torch.Tensor, others: Mapping[str, str], outputs: Mapping[str, int]) -> Any:
    for pattern, own in others.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(own)
    layer, _, side = name.rpartition(".")
    own = layer_in_comfyui(kind, layer)
    if own is None:
        return None
    turn = partial(ordered, order=own.order) if own.order else None
    if own.second:
        return f"{own.path}.{side}", None, lambda held: held.chunk(2)[0]
    if not own.part:
        return f"{own.path}.{side}", None, turn
    index = own.parts.index(own.part)
    from_behind = own.part in FEED_FORWARD or own.is_grouped and index
    start = outputs[own.path] - (len(own.parts) - index) * len(tensor) if from_behind else index * len(tensor)
    return f"{own.path}.{side}", (0, start, len(tensor)), turn
