"""Names of layers in files that ComfyUI loads: each that its own map knows, which differs between models.

Of UNets it knows kohya's names; of some transformers diffusers' own path, behind `transformer.`; of the others the path
in the original model, behind `diffusion_model.`. `tests/comfyui` loads them with ComfyUI's own code.
"""

import re
from collections.abc import Mapping

import torch

from fera.export.pair import Pair

# Models of which it knows diffusers' paths.
_BY_DIFFUSERS = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)

_LUMINA2 = "Lumina2Transformer2DModel"

# What to replace in diffusers' path of a layer, in this order, for each of the others; most kept the original's names.
_RENAMED: dict[str, dict[str, str]] = {
    "LTXVideoTransformer3DModel": {r"^proj_in$": "patchify_proj", r"^time_embed\.": "adaln_single."},
    "LTX2VideoTransformer3DModel": {},
    "ErnieImageTransformer2DModel": {},
    "HiDreamImageTransformer2DModel": {},
    "Kandinsky5Transformer3DModel": {},
    "QwenImageTransformer2DModel": {},
    "ZImageTransformer2DModel": {},
    # Queries, keys and values are one layer: see `_fused`.
    _LUMINA2: {
        r"\.attn\.to_out\.0$": ".attention.out",
        r"\.attn\.": ".attention.",
        r"\.feed_forward\.linear_(\d)$": r".feed_forward.w\1",
        r"\.norm1\.linear$": ".adaLN_modulation.1",
        r"^time_caption_embed\.timestep_embedder\.linear_1$": "t_embedder.mlp.0",
        r"^time_caption_embed\.timestep_embedder\.linear_2$": "t_embedder.mlp.2",
        r"^time_caption_embed\.caption_embedder\.": "cap_embedder.",
        r"^norm_out\.linear_1$": "final_layer.adaLN_modulation.1",
        r"^norm_out\.linear_2$": "final_layer.linear",
    },
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
_WAN = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|add_[kv]_proj)|ffn\.net\.(0\.proj|2))"

# Attention of Lumina 2, which has queries, keys and values in one layer.
_FUSED = re.compile(r"(?P<block>.+)\.attn\.to_(?P<part>[qkv])")

HOLDS = (
    "UNets under kohya's names, "
    f"{', '.join(sorted((*_BY_DIFFUSERS, *_RENAMED)))} (Wan: attention and feed-forward layers)"
)


def refuses(denoiser: str | None, layers: list[str]) -> str | None:
    """Why the format cannot hold layers of a denoiser that is no UNet, or None."""
    if denoiser not in (*_BY_DIFFUSERS, *_RENAMED):
        return f"its key names for a {denoiser} are not known to fera"
    unknown = []
    if denoiser == "WanTransformer3DModel":
        unknown = [layer for layer in layers if not re.fullmatch(_WAN, layer)]
    if denoiser == _LUMINA2:
        blocks = {match["block"] for layer in layers if (match := _FUSED.fullmatch(layer))}
        for block in sorted(blocks):
            if not {f"{block}.attn.to_k", f"{block}.attn.to_v"} & set(layers):
                return f"queries of {block} are adapted and neither keys nor values, so the width of those is not known"
    return f"its key names are not known to fera for: {', '.join(unknown[:3])}" if unknown else None


def named(denoiser: str | None, layers: Mapping[str, Pair]) -> dict[str, Pair]:
    """The LoRA of each layer by the name that ComfyUI knows, for layers that are not refused."""
    if denoiser in _BY_DIFFUSERS:
        return {f"transformer.{layer}": pair for layer, pair in layers.items()}
    fused = {layer: _FUSED.fullmatch(layer) if denoiser == _LUMINA2 else None for layer in layers}
    found = {f"diffusion_model.{rename(denoiser, layer)}": layers[layer] for layer in layers if fused[layer] is None}
    return found | _fused_attention({layer: pair for layer, pair in layers.items() if fused[layer] is not None})


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
    renamed = rename(denoiser, layer) if denoiser in _RENAMED else layer
    return [f"transformer.{layer}", f"diffusion_model.{renamed}"]


def _fused_attention(layers: Mapping[str, Pair]) -> dict[str, Pair]:
    """One LoRA for the queries, keys and values of each block, with a block-diagonal up matrix."""
    found: dict[str, Pair] = {}
    blocks: dict[str, dict[str, Pair]] = {}
    for layer, pair in layers.items():
        match = _FUSED.fullmatch(layer)
        assert match is not None
        blocks.setdefault(match["block"], {})[match["part"]] = pair
    for block, parts in blocks.items():
        some = next(iter(parts.values()))
        keys = parts.get("k") or parts["v"]
        # Queries are as wide as the model; keys and values of grouped heads are narrower, and alike.
        widths = {"q": some.down.shape[1], "k": len(keys.up), "v": len(keys.up)}
        there = [part for part in widths if part in parts]
        ups = [parts[part].up if part in parts else some.up.new_zeros(width, 0) for part, width in widths.items()]
        downs = torch.cat([parts[part].down for part in there])
        found[f"diffusion_model.{block}.attention.qkv"] = Pair(downs, torch.block_diag(*ups))
    return found
