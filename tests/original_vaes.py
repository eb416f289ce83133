"""Autoencoders under the names of original code, as ComfyUI has files of them."""

import re
from typing import Any

from original_names import vae_of
from torch import Tensor

Weights = dict[str, Tensor]

_WAN = {
    ".mid_block.resnets.0.": ".middle.0.residual.",
    ".mid_block.resnets.1.": ".middle.2.residual.",
    ".mid_block.attentions.0.": ".middle.1.",
    ".conv_in.": ".conv1.",
    ".norm_out.": ".head.0.",
    ".conv_out.": ".head.2.",
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
}
_RESIDUAL = {"norm1.": "0.", "conv1.": "2.", "norm2.": "3.", "conv2.": "6."}


def kl(vae: Any) -> Weights:
    """Of Stable Diffusion, FLUX.1 and others."""
    return {key.removeprefix("first_stage_model."): weight.contiguous().clone() for key, weight in vae_of(vae).items()}


def wan(vae: Any) -> Weights:
    """Of Wan 2.1 and Qwen-Image: its levels are one list."""
    found = {}
    resnets = vae.config.num_res_blocks + 1
    for key, weight in vae.state_dict().items():
        if down := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.*)", key):
            name = f"encoder.downsamples.{down[1]}.{_residual(down[2])}"
        elif up := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.*)", key):
            place = int(up[1]) * (resnets + 1) + (int(up[3]) if up[2] == "resnets" else resnets)
            name = f"decoder.upsamples.{place}.{_residual(up[4])}"
        else:
            name = key
            for ours, theirs in _WAN.items():
                if ours in f".{name}" or name.startswith(ours):
                    name = name.replace(ours, theirs, 1)
                    break
            if ".residual." in name:
                name = _within(name)
        found[name] = weight.contiguous().clone()
    return found


def _residual(rest: str) -> str:
    if rest.startswith("conv_shortcut."):
        return rest.replace("conv_shortcut.", "shortcut.")
    return f"residual.{_within(rest)}" if rest.startswith(tuple(_RESIDUAL)) else rest


def _within(name: str) -> str:
    for ours, theirs in _RESIDUAL.items():
        name = name.replace(ours, theirs)
    return name
