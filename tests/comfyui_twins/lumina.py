"""Lumina-Image 2 and Z-Image, which ComfyUI has as one model."""

from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def z_image() -> Twin:
    """Z-Image's transformer, whose velocity runs the other way."""
    return _z_image({})


def z_image_omni() -> Twin:
    """The same with layers for what SigLIP sees of references, of which none is given here."""
    return _z_image({"siglip_feat_dim": 32})


def _z_image(more: dict[str, int]) -> Twin:
    from models.z_image import make_transformer

    denoiser = make_transformer(**more)
    settings = {
        **{
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
        },
        **{"n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32, "axes_dims": [4, 4, 8], "axes_lens": [256, 64, 64]},
        **{"qk_norm": True, "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "multiple_of": 1},
        **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "dtype": torch.float32},
        **more,
    }
    comfy = engine()
    model = comfy.model_base.Lumina2(comfy.supported_models.ZImage(dict(settings)), device="cpu")
    # As wide as in the real model, whatever the width of the rest.
    model.diffusion_model.t_embedder.mlp[0] = nn.Linear(256, 1024)
    model.diffusion_model.t_embedder.mlp[2] = nn.Linear(1024, 32)
    names = {name: _seen(name) for name in denoiser.state_dict() if name.startswith("siglip_")}
    copy_weights(denoiser, model, names | comfy.utils.z_image_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        found = denoiser(list(latent[:, :, None]), 1 - level, list(context), return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2)

    told = {"num_tokens": 5, "attention_mask": None}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), told, targets)


def lumina2() -> Twin:
    """Lumina-Image 2's transformer: grouped heads, whose queries, keys and values are one layer in ComfyUI."""
    from models.lumina2 import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "lumina2", "patch_size": 2, "in_channels": 4, "dim": 32, "n_layers": 1},
        **{"n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "cap_feat_dim": 32, "axes_dims": [4, 4, 8]},
        **{"axes_lens": [64, 64, 64], "qk_norm": True, "multiple_of": 16, "rope_theta": 10000.0},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.Lumina2(comfy.supported_models.Lumina2(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: _of_lumina2(name, tensor) for name, tensor in denoiser.state_dict().items()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = torch.ones(context.shape[:2], dtype=torch.long)
        return -denoiser(latent, 1 - level, context, told, return_dict=False)[0]

    settled = {"num_tokens": 5, "attention_mask": None}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "linear_3", "norm1.linear"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), settled, targets)


def _of_lumina2(name: str, tensor: Tensor) -> Any:
    """The original name of a weight of Lumina-Image 2's, with its range where it is a part of another."""
    for part, start in (("q", 0), ("k", 32), ("v", 48)):
        if f".attn.to_{part}." in name:
            return name.replace(f".attn.to_{part}.", ".attention.qkv."), (0, start, len(tensor)), None
    for old, new in {
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_caption_embed.caption_embedder.": "cap_embedder.",
        ".attn.norm_q.": ".attention.q_norm.",
        ".attn.norm_k.": ".attention.k_norm.",
        ".attn.to_out.0.": ".attention.out.",
        ".feed_forward.linear_": ".feed_forward.w",
        ".norm1.norm.": ".attention_norm1.",
        ".norm1.linear.": ".adaLN_modulation.1.",
        ".norm1.": ".attention_norm1.",
        ".norm2.": ".attention_norm2.",
        "norm_out.linear_1.": "final_layer.adaLN_modulation.1.",
        "norm_out.linear_2.": "final_layer.linear.",
    }.items():
        name = name.replace(old, new)
    return name


def _seen(name: str) -> Any:
    """The place of a weight of Z-Image's that reads what SigLIP sees."""
    for part, start in (("q", 0), ("k", 32), ("v", 64)):
        if f".attention.to_{part}." in name:
            return name.replace(f".to_{part}.", ".qkv."), (0, start, 32), None
    name = name.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
    return name.replace(".to_out.0.", ".out.")
