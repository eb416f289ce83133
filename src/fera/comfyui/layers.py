"""Where an adapter's layers are in ComfyUI's model.

ComfyUI keeps most models in the layout of their original code, and has a map from the names of LoRA files to its
weights. Some of its layers are several of diffusers' in one: a place is then a range of a layer's outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fera.comfyui.adapter import LiveAdapter
from fera.comfyui.experts import LayerExperts
from fera.errors import FeraError
from fera.export.comfyui import layer_in_comfyui, names_in_comfyui
from fera.export.comfyui.own import FEED_FORWARD, Own, ordered

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Place:
    """Experts and the layer of ComfyUI's model that they act in.

    Args:
        path: the layer's path in the model ("diffusion_model.…").
        experts: in the layer's own form.
        start: the first of the layer's outputs that they add to.
        length: how many those are; None for all.
    """

    path: str
    experts: LayerExperts
    start: int = 0
    length: int | None = None


def find_places(adapter: LiveAdapter, model: nn.Module, key_map: Mapping[str, Any]) -> list[Place]:
    """The place of each of an adapter's layers.

    Args:
        adapter: the adapter.
        model: ComfyUI's, which holds the denoiser as `diffusion_model`.
        key_map: names of a LoRA file to the model's weights, as `comfy.lora.model_lora_keys_unet` gives them.

    Raises:
        FeraError: a layer has no place in the model, or another size.
    """
    modules = dict(model.named_modules())
    places, missing = [], []
    for layer, experts in adapter.layers.items():
        targets = _targets(adapter.denoiser, layer, experts, key_map, modules)
        found = [place_at(layer, experts, target, modules) for target in targets]
        if not found or None in found:
            missing.append(layer)
        else:
            places += [place for place in found if place is not None]
    kind = type(getattr(model, "diffusion_model", model)).__name__
    if not places:
        raise FeraError(
            f"{adapter.name} was trained on a {adapter.denoiser}, and none of its {len(missing)} layers is in this "
            f"model, a {kind}: load it with the base that it was trained on"
        )
    if missing:
        raise FeraError(
            f"{len(missing)} of the {len(adapter.layers)} layers of {adapter.name} have no place in this model, a "
            f"{kind}: {', '.join(missing[:3])}. It may be of another version than the {adapter.denoiser} of training"
        )
    return places


def _targets(
    denoiser: str, layer: str, experts: LayerExperts, key_map: Mapping[str, Any], modules: Mapping[str, nn.Module]
) -> list[Any]:
    """Entries of ComfyUI's map for a layer, or such as it might have: mostly one; none where it has no place."""
    own = layer_in_comfyui(denoiser, layer)
    module = None if own is None else modules.get(f"diffusion_model.{own.path}")
    if own is None or module is None:
        return [key_map[name] for name in names_in_comfyui(denoiser, layer) if name in key_map][:1]
    if own.second:
        paths = enumerate((own.path, own.second))
        return [(f"diffusion_model.{path}{_WEIGHT}", None, partial(_half, index=index)) for index, path in paths]
    span = _span(layer, own, experts.outputs, module) if own.part else None
    return [(f"diffusion_model.{own.path}{_WEIGHT}", span, partial(ordered, order=own.order) if own.order else None)]


def _half(outputs: Tensor, index: int) -> Tensor:
    return outputs.chunk(2)[index]


def _span(layer: str, own: Own, width: int | None, module: nn.Module) -> tuple[int, int, int]:
    """Where a part of a fused layer is among its outputs: (0, start, length).

    Args:
        layer: what messages call it.
        own: the part.
        width: outputs of its experts; None where any will do.
        module: the fused layer.
    """
    inputs, outputs, _ = _features(module)
    if own.is_grouped:
        return (0, *_grouped(layer, width, outputs))
    if inputs is None or outputs is None:
        raise FeraError(f"{layer}: the size of its place in a fused layer of this model is not known")
    one = outputs // len(own.parts)
    if own.parts[-1] in FEED_FORWARD:
        one = inputs if width is None or own.part in FEED_FORWARD else width
    start = own.parts.index(own.part) * one
    return 0, start, outputs - start if own.part in FEED_FORWARD else one


def place_at(layer: str, experts: LayerExperts, target: Any, modules: Mapping[str, nn.Module]) -> Place | None:
    """The place that an entry of ComfyUI's map names.

    Args:
        layer: what messages call the layer.
        experts: its experts.
        target: a key of the model's weights, or (key, range, function of the weight).
        modules: of the model, by name.

    Returns:
        None where the model has no such layer.

    Raises:
        FeraError: it has another size.
    """
    key, span, turn = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
    path = key.removesuffix(_WEIGHT)
    module = modules.get(path)
    if module is None or (span is not None and span[0] != 0):
        return None
    inputs, outputs, kernel = _features(module)
    start, length = (0, None) if span is None else (span[1], span[2])
    if span is not None and experts.outputs not in (length, None):
        # Keys and values of grouped heads are narrower than queries; the map takes all for equal.
        start, length = _grouped(layer, experts.outputs, outputs)
    if turn is not None:
        experts = experts.turned(turn)
    experts = experts.shaped(kernel)
    columns = None if inputs is None else inputs * math.prod(kernel or ())
    wanted = outputs if length is None else length
    fits = None in (columns, experts.columns) or columns == experts.columns
    fits = fits and (None in (wanted, experts.outputs) or wanted == experts.outputs)
    if not fits or (length is not None and outputs is not None and start + length > outputs):
        raise FeraError(
            f"{layer} of the adapter has {_told(experts.columns, kernel)} inputs and {_told(experts.outputs)} outputs, "
            f"and {path} of this model {_told(inputs)} and {_told(outputs)}: they are of different models"
        )
    return Place(path, experts, start, length)


def _told(number: int | None, kernel: Sequence[int] | None = None) -> str:
    return "any" if number is None else f"{number / math.prod(kernel or ()):g}"


def _grouped(layer: str, length: Any, outputs: int | None) -> tuple[int, int]:
    """Where queries, keys and values of unequal width lie, one behind the other; the last two are equally wide."""
    kind = layer.rpartition("to_")[2]
    if outputs is None or length is None or kind not in ("q", "k", "v"):
        raise FeraError(f"{layer}: its place in a fused layer of this model is not known")
    return {"q": 0, "k": outputs - 2 * length, "v": outputs - length}[kind], length


def _features(module: nn.Module) -> tuple[int | None, int | None, tuple[int, ...] | None]:
    """Inputs and outputs of a layer, None where it does not say; and the size of its kernel, None of a linear layer."""
    kernel: Any = getattr(module, "kernel_size", None)
    for names in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, names[0]):
            return getattr(module, names[0]), getattr(module, names[1]), kernel
    return None, None, kernel
