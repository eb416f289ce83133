"""Safetensors files whose weights are 8-bit floats with a scale each, as ComfyUI publishes them ("fp8 scaled").

diffusers drops the scales, and what it loads then is another model. Here weights are multiplied by theirs first.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fera.errors import FeraError

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Beside "NAME.weight": its scale, in the older files and in the newer.
_SCALES = (".scale_weight", ".weight_scale")
# What such files have besides: a mark, scales of what goes in, which computing in more bits has no use for.
_DROPPED = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
_DENOISER = "model.diffusion_model."


def has_scales(file: Path) -> bool:
    """Whether a file has weights with scales; a GGUF file has none."""
    return file.suffix == ".safetensors" and any(key.endswith(_SCALES) for key in _keys(file))


def check_scales(file: Path, *, is_whole: bool) -> None:
    """Refuse scales that are not read.

    Args:
        file: a safetensors or GGUF file.
        is_whole: whether it is a checkpoint of a whole pipeline.

    Raises:
        FeraError: they are of blocks or of 4-bit floats, or of other parts than the denoiser.
    """
    if not has_scales(file):
        return
    with safe_open(file, framework="pt") as opened:
        for name, scale in _scales(_keys(file)):
            if is_whole and not name.startswith(_DENOISER):
                raise FeraError(
                    f"{name} has a scale: weights with scales are read of a denoiser alone, not of encoders"
                )
            weight, shape = opened.get_slice(name), opened.get_slice(scale).get_shape()
            dtype, rows = weight.get_dtype(), weight.get_shape()[0]
            if not dtype.startswith("F8") or shape not in ([], [1], [rows], [rows, 1]):
                raise FeraError(
                    f"{name} is {dtype} with a scale of shape {tuple(shape)}: 8-bit floats with one scale a weight or "
                    "a row are read; take such a file, a GGUF file, or one in bf16"
                )


def unscaled(file: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a file by name, each multiplied by its scale in float32.

    Args:
        file: a safetensors file that `check_scales` lets pass.
        dtype: what weights with scales become; others are as the file holds them.
    """
    keys = _keys(file)
    scales = dict(_scales(keys))
    found: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as opened:
        for name in keys:
            if name.endswith(_DROPPED):
                continue
            tensor: Tensor = opened.get_tensor(name)
            if name in scales:
                scale = opened.get_tensor(scales[name]).float()
                tensor = (tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))).to(dtype)
            found[name] = tensor.to(dtype) if tensor.dtype in _FP8 else tensor
    return found


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _scales(keys: list[str]) -> Iterator[tuple[str, str]]:
    """Names of weights, and of their scales."""
    for key in keys:
        for end in _SCALES:
            if key.endswith(end):
                yield f"{key.removesuffix(end)}.weight", key
