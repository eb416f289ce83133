"""Transformers under the names of original code, as ComfyUI has files of denoisers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Fused = Mapping[tuple[str, ...], str]

PREFIX = "model.diffusion_model."
_FLUX = {
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
    "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
    "context_embedder.": "txt_in.",
    "x_embedder.": "img_in.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}
_FLUX_DOUBLE = {
    "transformer_blocks.": "double_blocks.",
    "norm1.linear.": "img_mod.lin.",
    "norm1_context.linear.": "txt_mod.lin.",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0.": "img_attn.proj.",
    "attn.to_add_out.": "txt_attn.proj.",
    "ff.net.0.proj.": "img_mlp.0.",
    "ff.net.2.": "img_mlp.2.",
    "ff_context.net.0.proj.": "txt_mlp.0.",
    "ff_context.net.2.": "txt_mlp.2.",
}
_FLUX_SINGLE = {
    "single_transformer_blocks.": "single_blocks.",
    ".norm.linear.": ".modulation.lin.",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out.": "linear2.",
}
_SD3 = {
    "transformer_blocks.": "joint_blocks.",
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    **{f".attn{n}.norm_{part}.": f".x_block.attn{n}.ln_{part}." for n in ("", "2") for part in "qk"},
    **{f".attn.norm_added_{part}.": f".context_block.attn.ln_{part}." for part in "qk"},
    **{f".attn{n}.to_out.0.": f".x_block.attn{n}.proj." for n in ("", "2")},
    ".attn.to_add_out.": ".context_block.attn.proj.",
}
_WAN = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "condition_embedder.image_embedder.norm1.": "img_emb.proj.0.",
    "condition_embedder.image_embedder.ff.net.0.proj.": "img_emb.proj.1.",
    "condition_embedder.image_embedder.ff.net.2.": "img_emb.proj.3.",
    "condition_embedder.image_embedder.norm2.": "img_emb.proj.4.",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".add_k_proj.": ".k_img.",
    ".add_v_proj.": ".v_img.",
    ".norm_added_k.": ".norm_k_img.",
    "proj_out.": "head.head.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    ".norm2.": ".norm-three.",
    ".norm3.": ".norm2.",
    ".norm-three.": ".norm3.",
}
_HEADS: Fused = {("to_q", "to_k", "to_v"): "img_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj"): "txt_attn.qkv"}


def flux(transformer: Any) -> Weights:
    """FLUX.1: queries, keys and values are one matrix; in single blocks, with the first of the feed-forward's."""
    state = transformer.state_dict()
    single = _of(state, "single_transformer_blocks.")
    double = _of(state, "transformer_blocks.")
    others = {key: weight for key, weight in state.items() if key not in single and key not in double}
    heads = {tuple(f"attn.{part}" for part in parts): name for parts, name in _HEADS.items()}
    ends = {key.replace("proj_out.", "final_layer.linear."): weight for key, weight in others.items()}
    return {
        **_renamed(_swapped(ends), _FLUX),
        **_renamed(_fused(double, heads), _FLUX_DOUBLE),
        **_renamed(_fused(single, {("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1"}), _FLUX_SINGLE),
    }


def stable_diffusion_3(transformer: Any) -> Weights:
    """Stable Diffusion 3 and 3.5; its last block, as its end, has scale and shift the other way round."""
    state = transformer.state_dict()
    last = f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context.linear."
    state = {key: _halves(weight) if key.startswith(last) else weight for key, weight in _swapped(state).items()}
    blocks = _of(state, "transformer_blocks.")
    others = {key: weight for key, weight in state.items() if key not in blocks}
    ends = {key.replace("proj_out.", "final_layer.linear."): weight for key, weight in others.items()}
    heads = {
        ("attn.to_q", "attn.to_k", "attn.to_v"): "x_block.attn.qkv",
        ("attn2.to_q", "attn2.to_k", "attn2.to_v"): "x_block.attn2.qkv",
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "context_block.attn.qkv",
    }
    return _renamed({**ends, **_fused(blocks, heads)}, _SD3)


def wan(transformer: Any) -> Weights:
    """Wan 2.1 and 2.2."""
    found = _renamed(transformer.state_dict(), _WAN)
    return {
        ("head.modulation" if key == "scale_shift_table" else key.replace("scale_shift_table", "modulation")): weight
        for key, weight in found.items()
    }


def qwen_image(transformer: Any) -> Weights:
    """Qwen-Image has diffusers' own names, under ComfyUI's prefix."""
    return {f"{PREFIX}{key}": weight.clone() for key, weight in transformer.state_dict().items()}


def _of(state: Weights, beginning: str) -> Weights:
    return {key: weight for key, weight in state.items() if key.startswith(beginning)}


def _renamed(state: Weights, names: Mapping[str, str]) -> Weights:
    found = {}
    for key, weight in state.items():
        for name, there in names.items():
            key = key.replace(name, there)
        found[key] = weight.clone()
    return found


def _fused(state: Weights, groups: Fused) -> Weights:
    """With matrices of one group below each other."""
    found = {}
    for key, weight in state.items():
        group = next((parts for parts in groups if any(f".{part}." in key for part in parts)), None)
        if group is None:
            found[key] = weight
        elif f".{group[0]}." in key:
            there = key.replace(f".{group[0]}.", f".{groups[group]}.")
            found[there] = torch.cat([state[key.replace(f".{group[0]}.", f".{part}.")] for part in group])
    return found


def _swapped(state: Weights) -> Weights:
    return {key: _halves(weight) if key.startswith("norm_out.linear.") else weight for key, weight in state.items()}


def _halves(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1])
