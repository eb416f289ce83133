"""PixArt."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def pixart() -> Twin:
    """PixArt-α's transformer. ComfyUI takes latents of 64 pixels or more. Half of its outputs are no noise."""
    from models.pixart import make_transformer

    denoiser = make_transformer(sample_size=64)
    settings = {
        **{"image_model": "pixart_alpha", "in_channels": 4, "hidden_size": 32, "depth": 1, "num_heads": 2},
        **{"input_size": 64, "patch_size": 2, "caption_channels": 64, "model_max_length": 5, "micro_condition": False},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.PixArt(comfy.supported_models.PixArtAlpha(dict(settings)), device="cpu").eval()
    # Of texts that are dropped in training.
    del model.diffusion_model.y_embedder.y_embedding
    copy_weights(denoiser, model, comfy.utils.pixart_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = {"resolution": None, "aspect_ratio": None}
        found = denoiser(latent, context, (level * 1000).round(), added_cond_kwargs=told).sample
        return found.chunk(2, dim=1)[0]

    # It has the texts of all samples in one row: keys and values of the text need one gate.
    targets = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "to_out.0", "attn2.to_q", "ff.net.0.proj", "ff.net.2"]
    return Twin(denoiser, model, (4, 64, 64), predict, (5, 64), targets=targets)
