"""LongCat-Image and Ovis-Image, whose blocks are FLUX's."""

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names
from fera.models.packing import pack, places, unpack

NORMS = {
    r"transformer_blocks\.(\d+)\.attn\.norm_q\.(.+)": r"double_blocks.\1.img_attn.norm.query_norm.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_k\.(.+)": r"double_blocks.\1.img_attn.norm.key_norm.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_q\.(.+)": r"double_blocks.\1.txt_attn.norm.query_norm.\2",
    r"transformer_blocks\.(\d+)\.attn\.norm_added_k\.(.+)": r"double_blocks.\1.txt_attn.norm.key_norm.\2",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_q\.(.+)": r"single_blocks.\1.norm.query_norm.\2",
    r"single_transformer_blocks\.(\d+)\.attn\.norm_k\.(.+)": r"single_blocks.\1.norm.key_norm.\2",
}


def longcat_image() -> Twin:
    """LongCat-Image's transformer, whose picture's places begin where its words end."""
    from models.longcat_image import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 8]},
        **{"theta": 10000, "qkv_bias": True, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 32},
        **{"txt_ids_dims": [1, 2], "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.LongCatImage(comfy.supported_models.LongCatImage(settings), device="cpu")
    copy_by_names(denoiser, model, NORMS)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        count = context.shape[1]
        words = torch.zeros(count, 3)
        words[:, 1:] = torch.arange(count)[:, None]
        tokens = denoiser(
            hidden_states=pack(latent),
            timestep=level,
            encoder_hidden_states=context,
            img_ids=places(height, width, latent) + torch.tensor([1.0, count, count]),
            txt_ids=words,
        ).sample
        return unpack(tokens, height, width)

    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out", "proj_mlp", "proj_out", "x_embedder"]
    targets += ["norm_out.linear", "context_embedder", "linear_2", "norm1.linear", "ff.net.0.proj", "ff_context.net.2"]
    return Twin(denoiser, model, (16, 16, 16), predict, (5, 32), targets=targets)


def ovis_image() -> Twin:
    """Ovis-Image's transformer, whose feed-forward layers have gates: in double blocks layers of their own."""
    from models.ovis_image import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "flux", "in_channels": 4, "out_channels": 4, "patch_size": 2, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 8]},
        **{"theta": 10000, "qkv_bias": True, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 8},
        **{"txt_ids_dims": [1, 2], "yak_mlp": True, "txt_norm": True, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.Flux(comfy.supported_models.Flux(settings), device="cpu")
    copy_by_names(denoiser, model, NORMS | {r"context_embedder_norm\.(.+)": r"txt_norm.\1"})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        words = torch.zeros(context.shape[1], 3)
        words[:, 1:] = torch.arange(context.shape[1])[:, None]
        tokens = denoiser(
            hidden_states=pack(latent),
            timestep=level,
            encoder_hidden_states=context,
            img_ids=places(height, width, latent),
            txt_ids=words,
        ).sample
        return unpack(tokens, height, width)

    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out", "proj_mlp", "proj_out", "x_embedder"]
    targets += ["norm_out.linear", "context_embedder", "linear_2", "norm1.linear", "ff.net.0.proj", "ff_context.net.2"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 8), targets=targets)
