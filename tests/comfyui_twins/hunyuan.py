"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1, whose queries, keys and values are one layer in ComfyUI."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names
from comfyui_twins.flux_kin import NORMS

_SETTINGS: dict[str, Any] = {
    **{"image_model": "hunyuan_video", "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2]},
    **{"hidden_size": 32, "num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "theta": 256},
    **{"axes_dim": [4, 4, 8], "qkv_bias": True, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 32},
    **{"meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "byt5": False},
    **{"meanflow_sum": False, "dtype": torch.float32},
}
_NORMS = {
    **NORMS,
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.norm(\d)\.(.+)": (
        r"txt_in.individual_token_refiner.blocks.\1.norm\2.\3"
    ),
    r"context_embedder_2\.norm\.(.+)": r"byt5_in.layernorm.\1",
    r"image_embedder\.norm_in\.(.+)": r"vision_in.proj.0.\1",
    r"image_embedder\.norm_out\.(.+)": r"vision_in.proj.4.\1",
    r"cond_type_embed\.(.+)": r"cond_type_embedding.\1",
}
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out"]
_REST = ["ff.net.0.proj", "ff_context.net.2", "norm1.linear", "norm_out.linear", "proj_out", "x_embedder.proj"]


def hunyuan_video() -> Twin:
    """HunyuanVideo's transformer, on three frames."""
    return _hunyuan_video()


def hunyuan_image_to_video() -> Twin:
    """The same for a given picture, which is the latent's first frame.

    No twin: in single blocks ComfyUI takes words, not the first frame's pixels, for what is given.
    """
    return _hunyuan_video(image_condition_type="token_replace")


def _hunyuan_video(**given: str) -> Twin:
    from models.hunyuan_video import make_transformer

    denoiser = make_transformer(
        guidance_embeds=False, rope_axes_dim=(4, 4, 8), attention_head_dim=16, num_refiner_layers=2, **given
    )
    comfy = engine()
    config = comfy.supported_models.HunyuanVideo(_SETTINGS | {"vec_in_dim": 32})
    model = comfy.model_base.HunyuanVideo(config, device="cpu")
    copy_by_names(denoiser, model, _NORMS)
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(
            hidden_states=latent,
            timestep=level * 1000,
            encoder_hidden_states=context,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            pooled_projections=pooled.expand(len(latent), -1),
        ).sample

    targets = [*_ATTENTION, *_REST, "proj_mlp", "linear_1", "context_embedder.proj_in"]
    told = {"y": pooled} | ({"guiding_frame_index": torch.zeros(1)} if given else {})
    return Twin(denoiser, model, (4, 3, 8, 8), predict, (5, 32), told, targets)


def hunyuan_video15() -> Twin:
    """HunyuanVideo 1.5's transformer for a given frame: in channels behind the latent, and as SigLIP sees it."""
    from models.hunyuan_video15 import make_transformer

    denoiser = make_transformer(
        rope_axes_dim=(4, 4, 8),
        attention_head_dim=16,
        mlp_ratio=4.0,
        num_refiner_layers=2,
        text_embed_dim=32,
        text_embed_2_dim=1472,
    )
    settings = {"in_channels": 9, "patch_size": [1, 1, 1], "depth_single_blocks": 0, "byt5": True}
    settings |= {"vision_in_dim": 12, "use_cond_type_embedding": True}
    comfy = engine()
    model = comfy.model_base.HunyuanVideo15(comfy.supported_models.HunyuanVideo15(_SETTINGS | settings), device="cpu")
    copy_by_names(denoiser, model, _NORMS)
    generator = torch.Generator().manual_seed(3)
    letters, seen = torch.randn(1, 3, 1472, generator=generator), torch.randn(1, 4, 12, generator=generator)
    channels = torch.randn(1, 5, 3, 8, 8, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        batch = len(latent)
        return denoiser(
            hidden_states=torch.cat([latent, channels.expand(batch, -1, -1, -1, -1)], dim=1),
            timestep=level * 1000,
            encoder_hidden_states=context,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            encoder_hidden_states_2=letters.expand(batch, -1, -1),
            encoder_attention_mask_2=torch.ones(batch, 3, dtype=torch.long),
            image_embeds=seen.expand(batch, -1, -1),
        ).sample

    told = {"txt_byt5": letters, "clip_fea": seen, "c_concat": channels}
    targets = [*_ATTENTION, *_REST[:-1], "linear_1", "linear_2", "linear_3"]
    return Twin(denoiser, model, (4, 3, 8, 8), predict, (5, 32), told, targets)


def hunyuan_image() -> Twin:
    """HunyuanImage 2.1's transformer, with letters as ByT5 reads them."""
    from models.hunyuan import make_image_transformer

    denoiser = make_image_transformer(num_refiner_layers=2, text_embed_2_dim=1472)
    settings = {"patch_size": [1, 1], "axes_dim": [8, 8], "byt5": True}
    comfy = engine()
    model = comfy.model_base.HunyuanImage21(comfy.supported_models.HunyuanImage21(_SETTINGS | settings), device="cpu")
    copy_by_names(denoiser, model, _NORMS)
    letters = torch.randn(1, 3, 1472, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(
            hidden_states=latent,
            timestep=level * 1000,
            encoder_hidden_states=context,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            encoder_hidden_states_2=letters.expand(len(latent), -1, -1),
            encoder_attention_mask_2=torch.ones(len(latent), 3, dtype=torch.long),
        ).sample

    targets = [*_ATTENTION, *_REST, "proj_mlp", "linear_1", "linear_3"]
    return Twin(denoiser, model, (4, 8, 8), predict, (5, 32), {"txt_byt5": letters}, targets)
