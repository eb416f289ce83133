"""Which layer of ComfyUI's model one of diffusers' is."""

import re
from dataclasses import replace
from functools import cache

from fera.export.comfyui import (
    ace_step,
    cogvideox,
    flux,
    hunyuan,
    hunyuan_dit,
    ideogram4,
    kept,
    ltx,
    lumina,
    mochi,
    stable_audio,
    stable_video,
    wan,
)
from fera.export.comfyui.own import Names, Own

# Models of which ComfyUI's own map of names knows diffusers' paths.
BY_DIFFUSERS = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
_KINDS = (
    *(ace_step, cogvideox, flux, hunyuan, hunyuan_dit, ideogram4, kept, ltx, lumina, mochi),
    *(stable_audio, wan),
)
NAMES: dict[str, Names] = {denoiser: names for kin in _KINDS for denoiser, names in kin.NAMES.items()}


# Whose layers have names of their own there.
NAMED = (*NAMES, stable_video.DENOISER)


@cache
def layer_in_comfyui(denoiser: str, layer: str) -> Own | None:
    """The layer of ComfyUI's model that one of diffusers' is, or is a part of.

    Args:
        denoiser: class name, in diffusers, of the denoiser.
        layer: the layer's path in it.

    Returns:
        None where no table knows it, which of `BY_DIFFUSERS` and of most UNets none does.
    """
    if denoiser == stable_video.DENOISER:
        path = stable_video.path_of(layer)
        return None if path is None else Own(path)
    for pattern, own in NAMES.get(denoiser, {}).items():
        if match := re.fullmatch(pattern, layer):
            if isinstance(own, str):
                return Own(match.expand(own))
            path, part, second = (match.expand(text) for text in (own.path, own.part, own.second))
            return replace(own, path=path, part=part, second=second)
    return None


def names_in_comfyui(denoiser: str, layer: str) -> list[str]:
    """What a LoRA file may call a layer, so that ComfyUI's own map knows it; the first that is there counts.

    Args:
        denoiser: class name of the denoiser.
        layer: diffusers' path of the layer in it.
    """
    if "UNet" in denoiser and denoiser != stable_video.DENOISER:
        return [f"lora_unet_{layer.replace('.', '_')}"]
    own = layer_in_comfyui(denoiser, layer)
    names = [] if own is None or own.part or own.second else [f"diffusion_model.{own.path}"]
    return [f"transformer.{layer}", *names]
