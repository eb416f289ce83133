"""Wan 2.1."""

from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

_SETTINGS: dict[str, Any] = {
    **{"image_model": "wan2.1", "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16, "dim": 24, "ffn_dim": 32},
    **{"freq_dim": 32, "text_dim": 64, "num_heads": 2, "num_layers": 1, "dtype": torch.float32},
}
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def wan() -> Twin:
    """Wan 2.1's transformer, on five frames."""
    from models.wan import make_transformer

    denoiser = make_transformer()
    comfy = engine()
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_T2V(_SETTINGS | {"model_type": "t2v"}), device="cpu")
    copy_weights(denoiser, model, {name: _of_wan(name) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, level * 1000, context).sample

    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64), targets=_TARGETS)


def wan_image_to_video() -> Twin:
    """Wan 2.1's transformer for a given picture: behind the latent as channels, and as what a CLIP sees in it."""
    from models.wan import make_transformer

    denoiser = make_transformer(in_channels=36, image_dim=1280, added_kv_proj_dim=24)
    comfy = engine()
    settings = _SETTINGS | {"model_type": "i2v", "in_dim": 36}
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_I2V(settings), image_to_video=True, device="cpu")
    copy_weights(denoiser, model, {name: _of_wan(name) for name in denoiser.state_dict()})
    generator = torch.Generator().manual_seed(4)
    channels, seen = torch.randn(1, 20, 5, 8, 8, generator=generator), torch.randn(1, 257, 1280, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        given = torch.cat([latent, channels.expand(len(latent), -1, -1, -1, -1)], dim=1)
        return denoiser(given, level * 1000, context, seen.expand(len(latent), -1, -1)).sample

    # diffusers takes all but the last 512 tokens for the picture's.
    told = {"c_concat": channels, "clip_fea": seen}
    return Twin(denoiser, model, (16, 5, 8, 8), predict, (512, 64), told, [*_TARGETS, "add_k_proj", "add_v_proj"])


def _of_wan(name: str) -> str:
    """The original name of a weight of Wan's."""
    for old, new in {
        "condition_embedder.image_embedder.norm1.": "img_emb.proj.0.",
        "condition_embedder.image_embedder.ff.net.0.proj.": "img_emb.proj.1.",
        "condition_embedder.image_embedder.ff.net.2.": "img_emb.proj.3.",
        "condition_embedder.image_embedder.norm2.": "img_emb.proj.4.",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        ".attn1.": ".self_attn.",
        ".attn2.": ".cross_attn.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
        ".to_out.0.": ".o.",
        ".ffn.net.0.proj.": ".ffn.0.",
        ".ffn.net.2.": ".ffn.2.",
        ".norm2.": ".norm3.",
        ".add_k_proj.": ".k_img.",
        ".add_v_proj.": ".v_img.",
        ".norm_added_k.": ".norm_k_img.",
        ".scale_shift_table": ".modulation",
    }.items():
        name = name.replace(old, new)
    return {"scale_shift_table": "head.modulation"}.get(name, name.replace("proj_out.", "head.head."))
