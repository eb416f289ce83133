"""AuraFlow."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def aura_flow() -> Twin:
    """AuraFlow's transformer, whose timestep is the share of noise."""
    from models.aura_flow import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 32, "n_layers": 2},
        **{"n_double_layers": 1, "n_heads": 2, "global_conddim": 32, "cond_seq_dim": 32, "max_seq": 64},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.AuraFlow(comfy.supported_models.AuraFlow(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.auraflow_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, context, level).sample

    targets = ["to_q", "to_v", "add_k_proj", "to_add_out", "to_out.0", "linear_1", "out_projection", "norm1.linear"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), targets=targets)
