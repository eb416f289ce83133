"""Ideogram 4."""

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

# What tokens are, and where the picture's places begin.
TEXT, IMAGE, START = 3, 2, 65536


def ideogram4() -> Twin:
    """Ideogram 4's transformer: ComfyUI's latent has 2 x 2 pixels an entry, channels first."""
    from models.ideogram4 import make_transformer

    denoiser = make_transformer(0)
    settings = {
        **{"image_model": "ideogram4", "in_channels": 16, "num_layers": 1, "num_attention_heads": 2},
        **{"attention_head_dim": 16, "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 104},
        **{"mrope_section": [4, 2, 2], "rope_theta": 5000000, "norm_eps": 1e-5, "dtype": torch.float32},
    }
    comfy = engine()
    config = comfy.supported_models.Ideogram4(settings)
    config.unet_config |= settings  # it has those of the real model
    model = comfy.model_base.Ideogram4(config, device="cpu")
    copy_by_names(denoiser, model, {})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        batch, _, height, width = latent.shape
        tokens = latent.unflatten(1, (-1, 4)).permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2)
        count, length = height * width, context.shape[1]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1) + START
        words = torch.arange(length)[:, None].expand(-1, 3)
        what = torch.tensor([TEXT] * length + [IMAGE] * count)
        found = denoiser(
            hidden_states=torch.cat([tokens.new_zeros(batch, length, tokens.shape[2]), tokens], dim=1),
            timestep=1 - level,
            encoder_hidden_states=torch.cat([context, context.new_zeros(batch, count, context.shape[2])], dim=1),
            position_ids=torch.cat([words, pixels]).expand(batch, -1, -1),
            segment_ids=torch.ones(batch, length + count, dtype=torch.long),
            indicator=what.expand(batch, -1),
        ).sample[:, length:]
        return -found.unflatten(1, (height, width)).unflatten(3, (4, -1)).permute(0, 4, 3, 1, 2).flatten(1, 2)

    targets = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "adaln_modulation", "input_proj", "llm_cond_proj"]
    return Twin(denoiser, model, (16, 8, 8), predict, (5, 104), targets=[*targets, "final_layer.linear"])
