"""Names of layers in ComfyUI's own format: those of the original models, behind `diffusion_model.`."""

import re

# What to replace in diffusers' path of a layer, in this order, for each class; most kept the original's names.
_RENAMED: dict[str, dict[str, str]] = {
    "LTXVideoTransformer3DModel": {r"^proj_in$": "patchify_proj", r"^time_embed\.": "adaln_single."},
    "HiDreamImageTransformer2DModel": {},
    "QwenImageTransformer2DModel": {},
    "ZImageTransformer2DModel": {},
    "WanTransformer3DModel": {
        r"\.attn1\.": ".self_attn.",
        r"\.attn2\.": ".cross_attn.",
        r"_attn\.to_([qkv])$": r"_attn.\1",
        r"_attn\.add_([kv])_proj$": r"_attn.\1_img",
        r"_attn\.to_out\.0$": "_attn.o",
        r"\.ffn\.net\.0\.proj$": ".ffn.0",
        r"\.ffn\.net\.2$": ".ffn.2",
    },
}

# Layers whose names are known to survive the way to the format and back.
_WAN = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))"

HOLDS = f"{', '.join(sorted(_RENAMED))} (Wan: attention and feed-forward layers)"


def refuses(denoiser: str | None, layers: list[str]) -> str | None:
    """Why the format cannot hold layers of a denoiser, or None."""
    if denoiser not in _RENAMED:
        return f"its key names for a {denoiser} are not known to fera"
    if denoiser == "WanTransformer3DModel":
        unknown = [layer for layer in layers if not re.fullmatch(_WAN, layer)]
        if unknown:
            return f"its key names are not known to fera for: {', '.join(unknown[:3])}"
    return None


def rename(denoiser: str | None, layer: str) -> str:
    """The original model's path of a layer, for a denoiser that is not refused."""
    for pattern, name in _RENAMED[denoiser or ""].items():
        layer = re.sub(pattern, name, layer)
    return layer


def names_in_comfyui(denoiser: str, layer: str) -> list[str]:
    """What a LoRA file may call a layer, so that ComfyUI's own map knows it; the first that is there counts.

    Args:
        denoiser: class name of the denoiser.
        layer: diffusers' path of the layer in it.
    """
    if "UNet" in denoiser:
        return [f"lora_unet_{layer.replace('.', '_')}"]
    if denoiser == "Lumina2Transformer2DModel":
        layer = layer.replace(".attn.", ".attention.")
    renamed = rename(denoiser, layer) if denoiser in _RENAMED else layer
    return [f"transformer.{layer}", f"diffusion_model.{renamed}"]
