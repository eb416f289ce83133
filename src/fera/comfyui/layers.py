"""Where an adapter's layers are in ComfyUI's model.

ComfyUI keeps most models in the layout of their original code, and has a map from the names of LoRA files to its
weights. Some of its layers are several of diffusers' in one: a place is then a range of a layer's outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fera.comfyui.adapter import Experts, LiveAdapter
from fera.errors import FeraError
from fera.export.comfyui import names_in_comfyui

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
    experts: Experts
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
        target = next((key_map[name] for name in names_in_comfyui(adapter.denoiser, layer) if name in key_map), None)
        place = None if target is None else place_at(layer, experts, target, modules)
        if place is None:
            missing.append(layer)
        else:
            places.append(place)
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


def place_at(layer: str, experts: Experts, target: Any, modules: Mapping[str, nn.Module]) -> Place | None:
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
    start, length = (0, None) if span is None else (span[1], span[2])
    inputs, outputs = _features(module)
    if span is not None and length != len(experts.up):
        # Keys and values of grouped heads are narrower than queries; the map takes all for equal.
        start, length = _grouped(layer, experts, outputs)
    if turn is not None:
        experts = Experts(experts.down, turn(experts.up))
    experts = _as_the_layer(experts, module)
    fits = inputs in (None, experts.down.shape[1]) and outputs in (None, len(experts.up) if length is None else outputs)
    if not fits or (length is not None and outputs is not None and start + length > outputs):
        raise FeraError(
            f"{layer} of the adapter has {experts.down.shape[1]} inputs and {len(experts.up)} outputs, and {path} of "
            f"this model {inputs} and {outputs}: they are of different models"
        )
    return Place(path, experts, start, length)


def _grouped(layer: str, experts: Experts, outputs: int | None) -> tuple[int, int]:
    """Where queries, keys and values of unequal width lie, one behind the other; the last two are equally wide."""
    length, kind = len(experts.up), layer.rpartition("to_")[2]
    if outputs is None or kind not in ("q", "k", "v"):
        raise FeraError(f"{layer}: its place in a fused layer of this model is not known")
    return {"q": 0, "k": outputs - 2 * length, "v": outputs - length}[kind], length


def _features(module: nn.Module) -> tuple[int | None, int | None]:
    """Inputs and outputs of a layer; None where it does not say."""
    for names in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, names[0]):
            return getattr(module, names[0]), getattr(module, names[1])
    return None, None


def _as_the_layer(experts: Experts, module: nn.Module) -> Experts:
    """1 x 1 convolutions of the one are linear layers of the other."""
    is_convolution = hasattr(module, "kernel_size")
    if is_convolution and experts.down.ndim == 2:
        extra = (1,) * len(module.kernel_size)  # type: ignore[arg-type]
        return Experts(_shaped(experts.down, extra), _shaped(experts.up, extra))
    if not is_convolution and experts.down.ndim > 2 and experts.down[0, 0].numel() == 1:
        return Experts(experts.down.flatten(1), experts.up.flatten(1))
    return experts


def _shaped(weight: Tensor, extra: tuple[int, ...]) -> Tensor:
    return weight.reshape(*weight.shape, *extra)
