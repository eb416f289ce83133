"""Layers of UNets in their original code (SGM), which numbers blocks through."""

import re

# Resnets and attentions that these have in each down block; an up block has one more.
_LAYERS = 2

_SGM_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_KINDS = {"resnets": 0, "attentions": 1}


def sgm_path(layer: str) -> str | None:
    """Path of a layer in the original code, or None where it has no counterpart.

    Args:
        layer: its path in diffusers' UNet, whose blocks have two resnets each. Where the topmost up block has no
            attention, the last layer of it, which scales up, is another: that is left to the caller.
    """
    if layer in _SGM_TOP:
        return _SGM_TOP[layer]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", layer):
        kind, index, rest = match[1], int(match[2]), match[3]
        place = 1 if kind == "attentions" else 2 * index
        return _sgm_inner(f"middle_block.{place}", kind, rest)
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", layer):
        is_down, block, kind, index, rest = match[1] == "down", int(match[2]), match[3], int(match[4]), match[5]
        place = block * (_LAYERS + 1) + index
        path = f"input_blocks.{place + 1}" if is_down else f"output_blocks.{place}"
        return _sgm_inner(f"{path}.{_SGM_KINDS[kind]}", kind, rest)
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", layer):
        return f"input_blocks.{(int(match[1]) + 1) * (_LAYERS + 1)}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", layer):
        return f"output_blocks.{int(match[1]) * (_LAYERS + 1) + _LAYERS}.2.conv"
    return None


def _sgm_inner(path: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{path}.{rest}"
    return f"{path}.{_SGM_RESNET[rest]}" if rest in _SGM_RESNET else None
