"""What an adapter's settings must be before anything is built from them: its files may come from a stranger."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fera.errors import FeraError

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

# Far beyond any use, and little memory: a router of these sizes has 32 million weights.
_MOST = {"num_experts": 256, "num_virtual_tokens": 1024, "num_bands": 256, "router_features": 65_536}
_MAX_RANK = 16_384
_MAX_PATTERN = 500
_MAX_REPEATS = 4
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings that could take time without bound, or that only look like settings.

    Args:
        settings: as read from JSON.
        where: the file, for messages.

    Raises:
        FeraError: a pattern could take for ever to match, or the base's fingerprint is not one.
    """
    for name in ("rank_pattern", "alpha_pattern"):
        held = settings.get(name) or {}
        if not isinstance(held, dict) or not all(_is_number(value) for value in held.values()):
            raise FeraError(f"{where}: {name} must map names of layers to numbers")
        for pattern in held:
            _check_pattern(pattern, name, where)
    for name in _PATTERNS:
        value = settings.get(name)
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            if not isinstance(pattern, str):
                raise FeraError(f"{where}: {name} must hold names of layers, got {repr(pattern)[:80]}")
            _check_pattern(pattern, name, where)
    if settings.get("base_fingerprint") is not None:
        _check_fingerprint(settings["base_fingerprint"], where)


def check_limits(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a router that would take memory without bound.

    Raises:
        FeraError: a number is beyond all use.
    """
    for name, most in _MOST.items():
        value = settings.get(name, 0)
        if isinstance(value, int) and value > most:
            raise FeraError(f"{where}: {name} is {value}; up to {most} makes sense")


def check_shapes(shapes: Shapes, where: str) -> None:
    """Refuse tensors that claim a size without holding it, and ranks beyond all use.

    Raises:
        FeraError: a tensor is empty, or a rank is too large.
    """
    for key, shape in shapes.items():
        if math.prod(shape) == 0:
            raise FeraError(f"{where}: tensor {key} has shape {list(shape)}, which holds nothing; the file is damaged")
        if ".lora_A." in key and shape and shape[0] > _MAX_RANK:
            raise FeraError(f"{where}: tensor {key} has rank {shape[0]}; up to {_MAX_RANK} makes sense")


def check_layers(shapes: Shapes, denoiser: "nn.Module", prefix: str, where: str) -> None:
    """Hold LoRA weights against the linear layers they are for, before experts of their ranks are built.

    Args:
        shapes: shape of each tensor by its key.
        denoiser: the model that gets the adapter.
        prefix: what keys have before the name of a layer.
        where: the file, for messages.

    Raises:
        FeraError: a layer takes another number of inputs.
    """
    layers = dict(denoiser.named_modules())
    for key, shape in shapes.items():
        path, found, _ = key.removeprefix(prefix).partition(".lora_A.")
        if not found:
            continue
        layer = layers.get(path)
        weight = getattr(getattr(layer, "base_layer", layer), "in_features", None)
        if isinstance(weight, int) and len(shape) == 2 and shape[1] != weight:
            raise FeraError(f"{where}: {key} has shape {list(shape)}, but {path} of this base has {weight} inputs")


def _check_pattern(pattern: str, name: str, where: str) -> None:
    """PEFT matches names of layers with it, and some patterns take longer than the universe has."""
    nested = re.search(r"\)\s*(?:[*+]|\{\d*,)", pattern)
    repeats = len(re.findall(r"[*+]|\{\d*,\d*\}", pattern))
    if len(pattern) > _MAX_PATTERN or nested or repeats > _MAX_REPEATS:
        raise FeraError(
            f"{where}: the pattern {pattern[:80]!r} in {name} could take very long to match; use one of at most "
            f"{_MAX_REPEATS} repeats (* or +), none of them of a group"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise FeraError(f"{where}: {pattern[:80]!r} in {name} is no pattern: {error}") from None


def _check_fingerprint(value: Any, where: str) -> None:
    sample = value.get("sample") if isinstance(value, dict) else None
    fits = (
        isinstance(sample, dict)
        and isinstance(value.get("class"), str)
        and isinstance(value.get("tensors"), int)
        and all(isinstance(held, list) and all(map(_is_number, held)) for held in sample.values())
    )
    if not fits:
        raise FeraError(f"{where}: base_fingerprint is not what fera writes; the config is damaged")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
