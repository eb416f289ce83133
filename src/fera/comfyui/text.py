"""An adapter's parts in the text encoders, as ComfyUI takes them: nothing routes these."""

import re
from typing import Any

import torch
from torch import Tensor

from fera.adapters.text.comfyui_names import comfyui_name
from fera.adapters.text.files import TextFiles
from fera.errors import FeraError

# What follows a layer's name in the formats that ComfyUI reads.
_SIDE = re.compile(r"\.(lora_[AB]\.weight|lora_(up|down)\.weight|alpha)$")


def patches(text: TextFiles, key_map: dict[str, str], load_lora: Any) -> dict[Any, Any]:
    """The LoRA of the text encoders as patches of ComfyUI's.

    Args:
        text: the parts.
        key_map: names of a LoRA file to weights, as `comfy.lora.model_lora_keys_clip` gives them.
        load_lora: `comfy.lora.load_lora`.

    Raises:
        FeraError: a layer is not in these text encoders.
    """
    tensors: dict[str, Tensor] = {}
    for encoder in text.loras:
        lora = text.lora(encoder)
        for path, (down, up) in lora.layers.items():
            name = comfyui_name(encoder, path) or f"{encoder}.{path}"
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
            tensors[f"{name}.alpha"] = torch.tensor(float(lora.alpha))
    return loaded_patches(tensors, key_map, load_lora)


def loaded_patches(tensors: dict[str, Tensor], key_map: dict[str, str], load_lora: Any) -> dict[Any, Any]:
    """The tensors of a LoRA file for text encoders as patches of ComfyUI's.

    Args:
        tensors: by their names in the file.
        key_map: as `comfy.lora.model_lora_keys_clip` gives it.
        load_lora: `comfy.lora.load_lora`.

    Raises:
        FeraError: a layer is not in these text encoders.
    """
    names = {_SIDE.sub("", key) for key in tensors}
    if missing := sorted(names - key_map.keys()):
        raise FeraError(
            f"{len(missing)} of {len(names)} layers of the adapter's text encoders are not in this CLIP: "
            f"{', '.join(missing[:3])}. Give the CLIP of the base that it was trained on"
        )
    found: dict[Any, Any] = load_lora(tensors, key_map, log_missing=False)
    return found
