"""Krea 2."""

import re

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

from fera.models.packing import pack, unpack


def krea2() -> Twin:
    """Krea 2's transformer, which reads several layers of its text encoder."""
    from models.krea2 import make_transformer

    blocks = {"num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2}  # as many as ComfyUI has
    denoiser = make_transformer(intermediate_size=128, text_intermediate_size=128, axes_dims_rope=(4, 6, 6), **blocks)
    settings = {
        **{"image_model": "krea2", "features": 32, "tdim": 16, "txtdim": 32, "heads": 2, "kvheads": 1, "multiplier": 1},
        **{"layers": 1, "patch": 2, "channels": 8, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.Krea2(comfy.supported_models.Krea2(dict(settings)), device="cpu")
    names = comfy.utils.krea2_to_diffusers(settings)
    copy_weights(denoiser, model, {name: _name(name, names) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        ids = torch.zeros(height, width, 3)
        ids[..., 1] = torch.arange(height)[:, None]
        ids[..., 2] = torch.arange(width)[None]
        tokens = denoiser(
            hidden_states=pack(latent),
            encoder_hidden_states=context.unflatten(-1, (2, 32)),
            timestep=level,
            position_ids=torch.cat([torch.zeros(context.shape[1], 3), ids.flatten(0, 1)]),
        ).sample
        return unpack(tokens, height, width)

    targets = ["to_q", "to_v", "to_gate", "to_out.0", "up", "down", "img_in", "time_mod_proj"]
    return Twin(denoiser, model, (8, 16, 16), predict, (5, 64), targets=targets)


def _name(name: str, names: dict[str, str]) -> str:
    weight = re.sub(r"\.bias$", ".weight", name)
    if weight in names:
        return re.sub(r"\.weight$", "", names[weight]) + name[len(weight.removesuffix(".weight")) :]
    for old, new in {
        r"^transformer_blocks": "blocks",
        r"^text_fusion": "txtfusion",
        r"attn\.norm_(q|k)\.weight$": r"attn.qknorm.\1norm.scale",
        r"\.norm1\.weight$": ".prenorm.scale",
        r"\.norm2\.weight$": ".postnorm.scale",
        r"^txt_in\.norm\.weight$": "txtmlp.0.scale",
        r"^final_layer\.norm\.weight$": "last.norm.scale",
        r"^final_layer\.scale_shift_table$": "last.modulation.lin",
        r"\.scale_shift_table$": ".mod.lin",
    }.items():
        name = re.sub(old, new, name)
    return name
