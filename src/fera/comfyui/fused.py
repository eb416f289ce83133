"""Layers of diffusers' that are one in ComfyUI, and that its map of names does not take apart: HunyuanVideo's.

Source of the names: ComfyUI's `comfy/ldm/hunyuan_video/model.py`, which keeps those of the original code.
"""

import re
from collections.abc import Mapping

_RENAMED: Mapping[str, Mapping[str, str]] = {
    "HunyuanVideoTransformer3DModel": {
        r"^x_embedder\.proj$": "img_in.proj",
        r"^proj_out$": "final_layer.linear",
        r"^single_transformer_blocks\.(\d+)\.attn\.to_([qkv])$": r"single_blocks.\1.linear1|\2",
        r"^single_transformer_blocks\.(\d+)\.proj_mlp$": r"single_blocks.\1.linear1|m",
        r"^single_transformer_blocks\.(\d+)\.proj_out$": r"single_blocks.\1.linear2",
        r"^single_transformer_blocks\.(\d+)\.norm\.linear$": r"single_blocks.\1.modulation.lin",
        r"^transformer_blocks\.(\d+)\.attn\.to_([qkv])$": r"double_blocks.\1.img_attn.qkv|\2",
        r"^transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj$": r"double_blocks.\1.txt_attn.qkv|\2",
        r"^transformer_blocks\.(\d+)\.attn\.to_out\.0$": r"double_blocks.\1.img_attn.proj",
        r"^transformer_blocks\.(\d+)\.attn\.to_add_out$": r"double_blocks.\1.txt_attn.proj",
        r"^transformer_blocks\.(\d+)\.norm1\.linear$": r"double_blocks.\1.img_mod.lin",
        r"^transformer_blocks\.(\d+)\.norm1_context\.linear$": r"double_blocks.\1.txt_mod.lin",
        r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj$": r"double_blocks.\1.img_mlp.0",
        r"^transformer_blocks\.(\d+)\.ff\.net\.2$": r"double_blocks.\1.img_mlp.2",
        r"^transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj$": r"double_blocks.\1.txt_mlp.0",
        r"^transformer_blocks\.(\d+)\.ff_context\.net\.2$": r"double_blocks.\1.txt_mlp.2",
        r"^context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.attn\.to_([qkv])$": (
            r"txt_in.individual_token_refiner.blocks.\1.self_attn.qkv|\2"
        ),
        r"^context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.attn\.to_out\.0$": (
            r"txt_in.individual_token_refiner.blocks.\1.self_attn.proj"
        ),
        r"^context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.ff\.net\.0\.proj$": (
            r"txt_in.individual_token_refiner.blocks.\1.mlp.0"
        ),
        r"^context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.ff\.net\.2$": (
            r"txt_in.individual_token_refiner.blocks.\1.mlp.2"
        ),
    },
}
# Each as wide as the model, but for the last, which has the rest.
_ORDER = "qkvm"


def fused_place(denoiser: str, layer: str) -> tuple[str, int | None] | None:
    """Where a layer is in ComfyUI's model.

    Args:
        denoiser: class name, in diffusers, of the denoiser.
        layer: the layer's path in it.

    Returns:
        The path of a layer of ComfyUI's denoiser, and which part of its outputs: its number, each as wide as the
        model, or None for all. None where this module knows nothing of the layer.
    """
    for pattern, name in _RENAMED.get(denoiser, {}).items():
        if re.match(pattern, layer):
            path, _, part = re.sub(pattern, name, layer).partition("|")
            return path, _ORDER.index(part) if part else None
    return None
