"""LoRA of text encoders in exports: which format has a place for which, and PEFT's folders for the others.

`load_lora_weights` of diffusers' pipelines reads LoRA of CLIP alone, and of some pipelines none of a text encoder. What
it does not read is a folder for each encoder, as `PreTrainedModel.load_adapter` of transformers takes it.
"""

import json
from collections.abc import Mapping

from torch import Tensor

from fera.adapters.text.comfyui_names import comfyui_name
from fera.export import kohya
from fera.export.pair import Pair
from fera.export.static import StaticLora

Layers = Mapping[str, Pair]
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

_CLIP = "text_model."
# Denoisers of the pipelines that read LoRA of CLIP, and of which encoders.
_READ: dict[str | None, tuple[str, ...]] = {
    kohya.UNET: ("text_encoder", "text_encoder_2"),
    "SD3Transformer2DModel": ("text_encoder", "text_encoder_2"),
    kohya.FLUX: ("text_encoder",),
}


def read_by_diffusers(lora: StaticLora) -> dict[str, Layers]:
    """LoRA of the text encoders that is in diffusers' file."""
    own = _READ.get(lora.denoiser, ())
    return {encoder: layers for encoder, layers in lora.text.items() if encoder in own and _is_clip(layers)}


def in_folders(lora: StaticLora) -> dict[str, Layers]:
    """LoRA of the text encoders that has folders of its own beside diffusers' file."""
    return {encoder: layers for encoder, layers in lora.text.items() if not _is_clip(layers)}


def diffusers_refuses(lora: StaticLora) -> str | None:
    """Why there is no place for LoRA of some text encoder, or None."""
    held = {*read_by_diffusers(lora), *in_folders(lora)}
    lost = [encoder for encoder in lora.text if encoder not in held]
    return f"diffusers reads no LoRA of {', '.join(lost)} for a {lora.denoiser}" if lost else None


def kohya_refuses(lora: StaticLora) -> str | None:
    """As `diffusers_refuses`."""
    if lora.denoiser == kohya.FLUX:
        return None
    lost = [encoder for encoder, layers in lora.text.items() if not _is_clip(layers)]
    return f"it has no names for the layers of {', '.join(lost)}" if lost else None


def comfyui_refuses(lora: StaticLora) -> str | None:
    """As `diffusers_refuses`."""
    lost = [f"{name}.{path}" for name, layers in lora.text.items() for path in layers if not comfyui_name(name, path)]
    return f"ComfyUI has no name for {', '.join(lost[:3])}" if lost else None


def comfyui_named(lora: StaticLora) -> dict[str, Pair]:
    """The LoRA of each layer of the text encoders by the name that ComfyUI knows, where it is not refused."""
    return {
        str(comfyui_name(encoder, path)): pair for encoder, layers in lora.text.items() for path, pair in layers.items()
    }


def peft_config(layers: Layers) -> str:
    """The configuration of PEFT's folder, JSON; the scale is in the up matrices."""
    rank = next(iter(layers.values())).rank
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(layers)}
    return json.dumps(settings | {"inference_mode": True}, indent=2) + "\n"


def peft_tensors(layers: Layers) -> dict[str, Tensor]:
    """The weights of PEFT's folder by its names."""
    return {
        f"base_model.model.{path}.lora_{side}.weight": tensor.contiguous().clone()
        for path, pair in layers.items()
        for side, tensor in (("A", pair.down), ("B", pair.up))
    }


def _is_clip(layers: Layers) -> bool:
    return all(path.startswith(_CLIP) for path in layers)
