"""Weights under the names of original code, as checkpoints in one file have them."""

import re
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


_OPEN_CLIP = {
    "text_model.": "",
    "encoder.layers.": "transformer.resblocks.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def stable_diffusion(pipe: Any) -> Weights:
    """A whole pipeline of Stable Diffusion 1, as its releases and their children are passed around."""
    text = _clip("cond_stage_model.transformer.", pipe.text_encoder)
    return {key: weight.contiguous().clone() for key, weight in {**text, **_unet_and_vae(pipe)}.items()}


def stable_diffusion_xl(pipe: Any) -> Weights:
    """A whole pipeline of SDXL: its second text encoder has OpenCLIP's names."""
    text = _clip("conditioner.embedders.0.transformer.", pipe.text_encoder)
    text |= {f"conditioner.embedders.1.model.{key}": w for key, w in _open_clip(pipe.text_encoder_2).items()}
    return {key: weight.contiguous().clone() for key, weight in {**text, **_unet_and_vae(pipe)}.items()}


def text_encoders_of_3(parts: Any) -> Weights:
    """Of Stable Diffusion 3, without T5: both have the names that transformers gives."""
    names = {
        "text_encoders.clip_l.transformer.": parts.text_encoder,
        "text_encoders.clip_g.transformer.": parts.text_encoder_2,
    }
    return {
        f"{beginning}{key if key.startswith('text_projection') else _with_wrapper(key)}": weight
        for beginning, encoder in names.items()
        for key, weight in encoder.state_dict().items()
    }


def vae_of(vae: Any) -> Weights:
    """The VAE of a whole checkpoint."""
    levels = len(vae.config.block_out_channels)
    return dict(_vae(key, weight, levels) for key, weight in vae.state_dict().items())


def _clip(beginning: str, encoder: Any) -> Weights:
    return {f"{beginning}{_with_wrapper(key)}": weight for key, weight in encoder.state_dict().items()}


def _open_clip(encoder: Any) -> Weights:
    state, found = encoder.state_dict(), {}
    for key, weight in state.items():
        original = key
        for name, there in _OPEN_CLIP.items():
            original = original.replace(name, there)
        if ".q_proj." in key:
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[original.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
        elif key == "text_projection.weight":
            found["text_projection"] = weight.T
        elif ".k_proj." not in key and ".v_proj." not in key:
            found[original] = weight
    return found


def _unet_and_vae(pipe: Any) -> Weights:
    layers = pipe.unet.config.layers_per_block
    unet = {f"model.diffusion_model.{_unet(key, layers)}": weight for key, weight in pipe.unet.state_dict().items()}
    return {**unet, **vae_of(pipe.vae)}


def z_image(transformer: Any) -> Weights:
    """The transformer of Z-Image alone, as ComfyUI has it: queries, keys and values are one matrix."""
    state, found = transformer.state_dict(), {}
    for key, weight in state.items():
        original = key
        for name, there in _Z_IMAGE.items():
            original = original.replace(name, there)
        if ".attention.to_q." in key:
            parts = [state[key.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            found[f"model.diffusion_model.{original.replace('to_q', 'qkv')}"] = torch.cat(parts)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            found[f"model.diffusion_model.{original}"] = weight.clone()
    return found


def _with_wrapper(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _unet(key: str, layers: int) -> str:
    for name, original in _UNET.items():
        if key.startswith(f"{name}."):
            return key.replace(name, original, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, number, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_inner(kind, rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
    assert found is not None, key
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # behind the attention of the last layer, where there is one
        return f"output_blocks.{block * (layers + 1) + layers}.2.{rest}"
    first = 1 + block * (layers + 1) if way == "down" else block * (layers + 1)
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, _, end = rest.partition(".")
    return f"{_RESNET[layer]}.{end}"


def _vae(key: str, weight: Tensor, levels: int) -> tuple[str, Tensor]:
    for name, original in (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")):
        key = key.replace(name, original)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for name, original in _VAE_ATTENTION.items():
            key = key.replace(f".{name}.", f".{original}.")
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return f"first_stage_model.{key}", weight
