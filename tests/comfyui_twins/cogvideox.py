"""CogVideoX."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

_REST = {
    r"transformer_blocks\.(\d+)\.norm(\d)\.norm\.(.+)": r"blocks.\1.norm\2.norm.\3",
    r"transformer_blocks\.(\d+)\.attn1\.norm_([qk])\.(.+)": r"blocks.\1.norm_\2.\3",
    r"(norm_final\..+|norm_out\.norm\..+)": r"\1",
}
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear", "linear_1", "proj_out"]
_TARGETS += ["patch_embed.proj", "norm_out.linear"]


def cogvideox() -> Twin:
    """CogVideoX of 5B: frames are rows of its first layer. By itself ComfyUI takes its places for further apart."""
    return _twin(spatial_interpolation_scale=1.0)


def cogvideox15() -> Twin:
    """CogVideoX 1.5, which takes two frames of a latent at once."""
    return _twin(patch_size_t=2)


def _twin(**settings: Any) -> Twin:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from models.cogvideox import make_transformer

    together = settings.get("patch_size_t")
    settings |= {"sample_width": 8, "sample_height": 8, "max_text_seq_length": 5, "time_embed_dim": 8}
    settings |= {"patch_bias": together is None, "use_rotary_positional_embeddings": True}
    denoiser = make_transformer(**settings)
    settings |= {"image_model": "cogvideox", "in_channels": 4, "out_channels": 4, "text_embed_dim": 64}
    settings |= {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "dtype": torch.float32}
    comfy = engine()
    model = comfy.model_base.CogVideoX(comfy.supported_models.CogVideoX_T2V(settings), device="cpu")
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames = latent.shape[2] // (together or 1)
        rotary = get_3d_rotary_pos_embed(16, None, (4, 4), frames, grid_type="slice", max_size=(4, 4))
        found = denoiser(
            hidden_states=latent.transpose(1, 2),
            encoder_hidden_states=context,
            timestep=(level * 1000).round(),
            image_rotary_emb=rotary,
        ).sample
        return found.transpose(1, 2)

    return Twin(denoiser, model, (4, 4, 8, 8), predict, (5, 64), targets=_TARGETS)
