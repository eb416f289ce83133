"""LTX-Video."""

from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

# Pixels and frames that an entry of its latent is, and how many frames a second ComfyUI takes a video to have.
SPATIAL, TEMPORAL, RATE = 32, 8, 25


def ltx() -> Twin:
    """LTX-Video's transformer, on three frames of a latent."""
    from models.ltx import components

    denoiser: Any = components()["transformer"]
    config = denoiser.config
    settings = {
        **{"image_model": "ltxv", "in_channels": 8, "cross_attention_dim": 32, "attention_head_dim": 8},
        **{"num_attention_heads": 4, "caption_channels": 64, "num_layers": 1, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.LTXV(comfy.supported_models.LTXV(settings), device="cpu")
    copy_weights(denoiser, model, {name: _name(name) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames, height, width = latent.shape[2:]
        tokens = denoiser(
            hidden_states=latent.flatten(2).transpose(1, 2),
            encoder_hidden_states=context,
            timestep=level * 1000,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(TEMPORAL / RATE, SPATIAL, SPATIAL),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, (frames, height, width))

    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    assert config.out_channels == 8
    return Twin(denoiser, model, (8, 3, 8, 8), predict, (5, 64), {"attention_mask": None}, targets)


def _name(name: str) -> str:
    for old, new in {"proj_in.": "patchify_proj.", "time_embed.": "adaln_single."}.items():
        name = new + name.removeprefix(old) if name.startswith(old) else name
    return name.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
