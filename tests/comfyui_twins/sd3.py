"""Stable Diffusion 3."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def sd3() -> Twin:
    """SD3's transformer; ComfyUI's is 64 times as wide as it is deep."""
    from tiny import make_sd3_transformer

    denoiser = make_sd3_transformer(
        patch_size=2, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128
    )
    settings = {
        **{"in_channels": 4, "out_channels": 4, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": 64},
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
        **{"num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.SD3(comfy.supported_models.SD3(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.mmdit_to_diffusers(settings))
    pooled = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, context, pooled.expand(len(latent), -1), level * 1000).sample

    targets = ["to_q", "to_k", "add_v_proj", "to_add_out", "ff.net.2", "norm1.linear", "proj_out"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), {"y": pooled}, targets)
