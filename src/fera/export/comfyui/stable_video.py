"""Stable Video Diffusion: the layers of a UNet, and beside each those between frames."""

import re

from fera.export.sgm import sgm_path

DENOISER = "UNetSpatioTemporalConditionModel"


def path_of(layer: str) -> str | None:
    """ComfyUI's path of a layer, None where it has no counterpart.

    Args:
        layer: its path in diffusers' UNet.
    """
    if layer == "up_blocks.0.upsamplers.0.conv":  # of a block without attention
        return "output_blocks.2.1.conv"
    if match := re.fullmatch(r"(.+\.resnets\.\d+)\.(spatial|temporal)_res_block\.(.+)", layer):
        path, first = sgm_path(f"{match[1]}.{match[3]}"), sgm_path(f"{match[1]}.conv1")
        if path is None or first is None or match[2] == "spatial":
            return path
        block = first.removesuffix(".in_layers.2")
        return f"{block}.time_stack{path.removeprefix(block)}"
    path = sgm_path(layer)
    if path is None or ".attentions." not in layer:
        return path
    path = path.replace(".temporal_transformer_blocks.", ".time_stack.")
    return path.replace(".time_pos_embed.linear_1", ".time_pos_embed.0").replace(
        ".time_pos_embed.linear_2", ".time_pos_embed.2"
    )
