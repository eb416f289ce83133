"""Names of layers in kohya's format: one name without dots a layer, for UNets and FLUX.

Stable Diffusion 1 and 2 keep diffusers' paths. SDXL has the block names of its original code (SGM). FLUX has those of
its original code, in which the projections of queries, keys and values, and in single blocks the first feed-forward
layer too, are one fused layer: their LoRAs become one with a block-diagonal up matrix.
"""

import re
from collections.abc import Mapping

import torch

from fera.export.pair import Pair
from fera.export.sgm import sgm_path

UNET = "UNet2DConditionModel"
FLUX = "FluxTransformer2DModel"
HOLDS = f"linear and convolution layers of a {UNET} (Stable Diffusion 1, 2, XL) and those of the blocks of a {FLUX}"

# Layers of a FLUX block that are not fused, and the parts of those that are, in the order they are stacked.
_FLUX_PLAIN = {
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": "double_blocks_{}_img_attn_proj",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": "double_blocks_{}_txt_attn_proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": "double_blocks_{}_img_mlp_0",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": "double_blocks_{}_img_mlp_2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": "double_blocks_{}_txt_mlp_0",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": "double_blocks_{}_txt_mlp_2",
    r"transformer_blocks\.(\d+)\.norm1\.linear": "double_blocks_{}_img_mod_lin",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear": "double_blocks_{}_txt_mod_lin",
    r"single_transformer_blocks\.(\d+)\.norm\.linear": "single_blocks_{}_modulation_lin",
    r"single_transformer_blocks\.(\d+)\.proj_out": "single_blocks_{}_linear2",
}
_FLUX_FUSED = {
    r"transformer_blocks\.(\d+)\.attn\.(to_q|to_k|to_v)": ("double_blocks_{}_img_attn_qkv", ("to_q", "to_k", "to_v")),
    r"transformer_blocks\.(\d+)\.attn\.(add_[qkv]_proj)": (
        "double_blocks_{}_txt_attn_qkv",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
    ),
    r"single_transformer_blocks\.(\d+)\.(?:attn\.)?(to_q|to_k|to_v|proj_mlp)": (
        "single_blocks_{}_linear1",
        ("to_q", "to_k", "to_v", "proj_mlp"),
    ),
}
# T5 is the third there, as it is of Stable Diffusion 3.
_FLUX_TEXT = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}
# The feed-forward layer of FLUX is this many times as wide as its attention.
_FLUX_MLP = {"proj_mlp": 4}


def refuses(denoiser: str | None, layers: list[str], is_sdxl: bool) -> str | None:
    """Why the format cannot hold layers of a denoiser, or None."""
    if denoiser not in (UNET, FLUX):
        return f"it has no names for the layers of a {denoiser}"
    if denoiser == FLUX:
        unknown = [layer for layer in layers if _flux_place(layer) is None]
    else:
        unknown = [layer for layer in layers if is_sdxl and sgm_path(layer) is None]
    return f"its names are not known to fera for: {', '.join(unknown[:3])}" if unknown else None


def named(denoiser: str | None, layers: Mapping[str, Pair], is_sdxl: bool) -> dict[str, Pair]:
    """The LoRA of each layer by the layer's name in the format, for layers that are not refused."""
    if denoiser == FLUX:
        return _flux(layers)
    paths = {layer: sgm_path(layer) or layer if is_sdxl else layer for layer in layers}
    return {f"lora_unet_{paths[layer].replace('.', '_')}": pair for layer, pair in layers.items()}


def text_named(denoiser: str | None, text: Mapping[str, Mapping[str, Pair]], is_sdxl: bool) -> dict[str, Pair]:
    """The LoRA of each layer of the text encoders by the layer's name in the format."""
    if denoiser == FLUX:
        names = _FLUX_TEXT
    else:
        numbers = {encoder: encoder[len("text_encoder_") :] or "1" for encoder in text}
        names = {encoder: f"lora_te{number if is_sdxl else ''}" for encoder, number in numbers.items()}
    return {
        f"{names[encoder]}_{path.replace('.', '_')}": pair
        for encoder, layers in text.items()
        for path, pair in layers.items()
    }


def base_version(denoiser: str | None, layers: Mapping[str, Pair], is_sdxl: bool) -> str:
    """What kohya's trainers call the base in their metadata."""
    if denoiser == FLUX:
        return "flux1"
    if is_sdxl:
        return "sdxl_base_v1-0"
    # The width of its texts tells Stable Diffusion 2.
    widths = {pair.down.shape[1] for layer, pair in layers.items() if layer.endswith(("attn2.to_k", "attn2.to_v"))}
    return "sd_v2" if widths == {1024} else "sd_v1"


def _flux_place(layer: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Name of a FLUX layer, which part of it this is, and all its parts; one part where it is not fused."""
    for pattern, name in _FLUX_PLAIN.items():
        if match := re.fullmatch(pattern, layer):
            return name.format(match[1]), "", ("",)
    for pattern, (name, parts) in _FLUX_FUSED.items():
        if match := re.fullmatch(pattern, layer):
            return name.format(match[1]), match[2], parts
    return None


def _flux(layers: Mapping[str, Pair]) -> dict[str, Pair]:
    found: dict[str, dict[str, Pair]] = {}
    order: dict[str, tuple[str, ...]] = {}
    for layer, pair in layers.items():
        place = _flux_place(layer)
        assert place is not None  # refused before
        name, part, order[name] = place
        found.setdefault(name, {})[part] = pair
    return {f"lora_unet_{name}": _fused(pairs, order[name]) for name, pairs in found.items()}


def _fused(pairs: dict[str, Pair], order: tuple[str, ...]) -> Pair:
    """One LoRA for a fused layer: downs stacked, ups on the diagonal; parts without a LoRA have no ranks."""
    if order == ("",):
        return pairs[""]
    some_part, some = next(iter(pairs.items()))
    width = some.up.shape[0] // _FLUX_MLP.get(some_part, 1)
    for part in order:
        if part not in pairs:
            up = some.up.new_zeros(width * _FLUX_MLP.get(part, 1), 0)
            pairs[part] = Pair(some.down[:0], up)
    return Pair(torch.cat([pairs[part].down for part in order]), torch.block_diag(*(pairs[part].up for part in order)))
