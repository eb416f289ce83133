"""Adapters on ComfyUI's own objects: a model patcher that routes them, a CLIP with their text parts."""

import uuid
from pathlib import Path
from typing import Any

from torch import Tensor

from fera.comfyui.acting import WRAPPER, ExpertLayers
from fera.comfyui.adapter import LiveAdapter
from fera.comfyui.layers import find_places
from fera.comfyui.routing import Routed
from fera.comfyui.schedule import Scheduled, bounds_of, lora_places, read_lora, read_schedule
from fera.comfyui.text import loaded_patches, patches
from fera.comfyui.tokens import with_token
from fera.errors import FeraError

# The key of what refuses to lose an adapter.
_GUARD = "fera"


def routed(model: Any, adapter: LiveAdapter, strength: float) -> Any:
    """A clone of ComfyUI's model patcher with an adapter at work.

    Args:
        model: a `ModelPatcher`.
        adapter: the adapter.
        strength: multiplies what its experts add; finite.

    Raises:
        FeraError: the adapter is of another model.
    """
    import comfy.lora

    _check_strength(strength)
    places = find_places(adapter, model.model, comfy.lora.model_lora_keys_unet(model.model, {}))
    model = model.clone()
    if strength:
        put(model, f"fera.{uuid.uuid4()}", Routed(adapter, ExpertLayers(adapter.name, places), strength))
    return model


def scheduled(model: Any, clip: Any, path: Path, strength: float, strength_clip: float) -> tuple[Any, Any]:
    """A clone of ComfyUI's model patcher with a schedule's LoRAs at work, and one of its CLIP with their text parts.

    Args:
        model: a `ModelPatcher`.
        clip: a `CLIP`, or None.
        path: the schedule.
        strength: multiplies what the LoRAs add; finite.
        strength_clip: the same for the text parts.

    Raises:
        FeraError: as `LoadSchedule.load`.
    """
    import comfy.lora

    for given in (strength, strength_clip):
        _check_strength(given)
    parts = read_schedule(path)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    layers, text = [], dict[str, Tensor]()
    for part in parts:
        tensors, text = read_lora(part.file)
        places = lora_places(part.file, tensors, names, model.model, comfy.lora.load_lora)
        layers.append(ExpertLayers(part.file.stem, places))
    if text and clip is None:
        raise FeraError(f"{path} has parts in the text encoders: connect the CLIP too")
    if text:
        key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        clip = clip.clone()
        clip.add_patches(loaded_patches(text, key_map, comfy.lora.load_lora), strength_clip)
    model = model.clone()
    put(model, f"fera.{uuid.uuid4()}", Scheduled(layers, bounds_of(parts), strength))
    return model, clip


def loaded(model: Any) -> dict[str, Routed]:
    """The adapters at work in a model patcher, by their keys in it."""
    wrappers = model.wrappers.get(WRAPPER, {})
    return {key: found[0] for key, found in wrappers.items() if found and isinstance(found[0], Routed)}


def _check_strength(strength: float) -> None:
    if not abs(strength) < float("inf"):
        raise FeraError(f"strength must be a finite number, got {strength}")


def put(model: Any, key: str, one: Routed | Scheduled) -> None:
    """Put an adapter into a patcher, in the place of what has the key there."""
    model.remove_wrappers_with_key(WRAPPER, key)
    model.add_wrapper_with_key(WRAPPER, key, one)
    model.remove_callbacks_with_key("on_detach_after", key)
    model.add_callback_with_key("on_detach_after", key, one.free)
    model.remove_callbacks_with_key("on_clone", _GUARD)
    model.add_callback_with_key("on_clone", _GUARD, lambda patcher, clone: _refuse_loss(clone))
    _refuse_loss(model)


def _refuse_loss(model: Any) -> None:
    """Let ComfyUI's nodes fail that would take the base's weights and leave the adapter behind, without a word."""
    kind = type(model)

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        if filter_prefix is not None:  # of nodes that merge; ComfyUI's hooks ask for all
            raise FeraError(
                "this model's FeRA adapter has no weights that could be merged into another model: they change at each "
                "step. Load the adapter behind the node that merges, or merge a LoRA of fera export"
            )
        return kind.get_key_patches(model, filter_prefix)

    def state_dict_for_saving(*arguments: Any, **options: Any) -> Any:
        raise FeraError(
            "this model has a FeRA adapter, which a saved checkpoint cannot hold: its weights change at each step. "
            "Save the model without it, or with a LoRA of fera export"
        )

    model.get_key_patches = get_key_patches
    model.state_dict_for_saving = state_dict_for_saving


def with_text(clip: Any, adapter: LiveAdapter, strength: float) -> Any:
    """A clone of ComfyUI's `CLIP` with the text parts of an adapter; the same where it has none.

    Args:
        clip: a `CLIP`, or None.
        adapter: the adapter.
        strength: multiplies what the LoRA adds; finite. A learned token is a word, whatever the strength.

    Raises:
        FeraError: there are such parts, and no CLIP or another one; or the strength is not finite.
    """
    _check_strength(strength)
    text = adapter.text
    if text is None:
        return clip
    if clip is None:
        raise FeraError(f"{adapter.name} has parts in the text encoders: connect the CLIP too")
    if text.token is not None:
        clip = with_token(clip, text, adapter.name)
    if not text.loras:
        return clip
    import comfy.lora

    found = patches(text, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}), comfy.lora.load_lora)
    clip = clip.clone()
    clip.add_patches(found, strength)
    return clip
