"""Chroma."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

from fera.models.packing import pack, places, unpack

# ComfyUI counts on as many modulations as these make.
DOUBLE, SINGLE = 19, 38


def chroma() -> Twin:
    """Chroma's transformer: FLUX.1 with modulations that a small network computes for all blocks."""
    from models.chroma import make_transformer

    denoiser = make_transformer(num_layers=DOUBLE, num_single_layers=SINGLE, approximator_num_channels=64)
    settings = {
        **{"image_model": "chroma", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 4.0, "depth": DOUBLE, "depth_single_blocks": SINGLE, "axes_dim": [4, 4, 8]},
        **{"theta": 10000, "qkv_bias": True, "vec_in_dim": None, "context_in_dim": 64, "txt_ids_dims": []},
        **{"in_dim": 64, "out_dim": 32, "hidden_dim": 16, "n_layers": 1, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.Chroma(comfy.supported_models.Chroma(dict(settings)), device="cpu")
    names = comfy.utils.flux_to_diffusers(settings)
    copy_weights(denoiser, model, {name: names.get(name) or _of_approximator(name) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        tokens = denoiser(
            hidden_states=pack(latent),
            timestep=level,
            encoder_hidden_states=context,
            img_ids=places(height, width, latent),
            txt_ids=torch.zeros(context.shape[1], 3),
        ).sample
        return unpack(tokens, height, width)

    told = {"guidance": torch.zeros(1)}
    targets = ["to_q", "to_v", "add_k_proj", "to_add_out", "proj_mlp", "proj_out", "x_embedder"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 64), told, targets)


def _of_approximator(name: str) -> str:
    for old, new in {
        ".linear_1.": ".in_layer.",
        ".linear_2.": ".out_layer.",
    }.items():
        name = name.replace(old, new)
    return name
