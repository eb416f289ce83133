"""Mochi."""

import torch
from comfyui_engine import Twin, engine
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

_REST = {
    "(pos_frequencies)": r"\1",
    r"transformer_blocks\.(\d+)\.attn1\.norm_([qk])\.(.+)": r"blocks.\1.attn.\2_norm_x.\3",
    r"transformer_blocks\.(\d+)\.attn1\.norm_added_([qk])\.(.+)": r"blocks.\1.attn.\2_norm_y.\3",
}


def mochi() -> Twin:
    """Mochi's transformer, on three frames; ComfyUI has its feed-forward layers as wide as the real model's."""
    from models.mochi import make_transformer

    denoiser = make_transformer(time_embed_dim=256)
    torch.manual_seed(1)
    for block in denoiser.transformer_blocks:
        block.ff = FeedForward(16, inner_dim=8192, activation_fn="swiglu", bias=False)
        if block.ff_context is not None:
            block.ff_context = FeedForward(16, inner_dim=256, activation_fn="swiglu", bias=False)
    settings = {
        **{"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 16},
        **{"hidden_size_y": 16, "mlp_ratio_x": 1536 * 8 / 16, "mlp_ratio_y": 4.0, "learn_sigma": False},
        **{"in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0},
        **{"patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True, "use_t5": True},
        **{"attend_to_padding": False, "timestep_scale": 1000.0, "use_extended_posenc": False},
        **{"t5_feat_dim": 64, "t5_token_length": 5, "rope_theta": 10000.0, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.GenmoMochi(comfy.supported_models.GenmoMochi(settings), device="cpu")
    nn.init.normal_(denoiser.pos_frequencies, std=0.1)
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return -denoiser(
            hidden_states=latent,
            encoder_hidden_states=context,
            timestep=(1 - level) * 1000,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.bool),
            return_dict=False,
        )[0]

    told = {"attention_mask": torch.ones(1, 5), "num_tokens": 5}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out", "ff.net.0.proj"]
    targets += ["ff_context.net.0.proj", "ff.net.2", "norm1.linear", "norm_out.linear", "proj_out", "linear_1"]
    return Twin(denoiser, model, (12, 3, 8, 8), predict, (5, 64), told, targets)
