"""Wan and models that are built on it."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names
from comfyui_twins.frames import of_tokens

_SETTINGS: dict[str, Any] = {
    **{"image_model": "wan2.1", "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16, "dim": 24, "ffn_dim": 32},
    **{"freq_dim": 32, "text_dim": 64, "num_heads": 2, "num_layers": 1, "dtype": torch.float32},
}
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "linear_1", "time_proj"]
_TARGETS += ["patch_embedding", "proj_out"]
_REST = {
    r"condition_embedder\.image_embedder\.norm1\.(.+)": r"img_emb.proj.0.\1",
    r"condition_embedder\.image_embedder\.norm2\.(.+)": r"img_emb.proj.4.\1",
    r"(.+)\.attn1\.(norm_[qk]\..+)": r"\1.self_attn.\2",
    r"(.+)\.attn2\.(norm_[qk]\..+)": r"\1.cross_attn.\2",
    r"(.+)\.attn2\.norm_added_k\.(.+)": r"\1.cross_attn.norm_k_img.\2",
    r"(.+)\.norm2\.(.+)": r"\1.norm3.\2",
    r"(.+)\.scale_shift_table": r"\1.modulation",
    "scale_shift_table": "head.modulation",
}


def wan() -> Twin:
    """Wan 2.1's transformer, on five frames."""
    from models.wan import make_transformer

    denoiser = make_transformer()
    comfy = engine()
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_T2V(_SETTINGS | {"model_type": "t2v"}), device="cpu")
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, level * 1000, context).sample

    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64), targets=_TARGETS)


def wan_image_to_video() -> Twin:
    """Wan 2.1's transformer for a given picture: behind the latent as channels, and as what a CLIP sees in it."""
    from models.wan import make_transformer

    denoiser = make_transformer(in_channels=36, image_dim=1280, added_kv_proj_dim=24)
    comfy = engine()
    settings = _SETTINGS | {"model_type": "i2v", "in_dim": 36}
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_I2V(settings), image_to_video=True, device="cpu")
    copy_by_names(denoiser, model, _REST)
    generator = torch.Generator().manual_seed(4)
    channels, seen = torch.randn(1, 20, 5, 8, 8, generator=generator), torch.randn(1, 257, 1280, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        given = torch.cat([latent, channels.expand(len(latent), -1, -1, -1, -1)], dim=1)
        return denoiser(given, level * 1000, context, seen.expand(len(latent), -1, -1)).sample

    # diffusers takes all but the last 512 tokens for the picture's.
    told = {"c_concat": channels, "clip_fea": seen}
    return Twin(denoiser, model, (16, 5, 8, 8), predict, (512, 64), told, [*_TARGETS, "add_k_proj", "add_v_proj"])


def wan22_5b() -> Twin:
    """The smaller model of Wan 2.2: latents of 48 channels, and a noise level for each token."""
    from models.wan import make_transformer

    denoiser = make_transformer(in_channels=48, out_channels=48)
    comfy = engine()
    settings = _SETTINGS | {"model_type": "t2v", "in_dim": 48, "out_dim": 48}
    model = comfy.model_base.WAN22(comfy.supported_models.WAN22_T2V(settings), image_to_video=True, device="cpu")
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, 1000 * of_tokens(level, latent, 2), context).sample

    return Twin(denoiser, model, (48, 5, 8, 8), predict, (5, 64), targets=_TARGETS)


def wan_vace() -> Twin:
    """Wan 2.1 VACE: blocks of their own read frames and masks that are given."""
    from diffusers import WanVACETransformer3DModel
    from models.wan import SETTINGS

    torch.manual_seed(0)
    denoiser = WanVACETransformer3DModel(**SETTINGS, vace_layers=[0], vace_in_channels=96).eval()
    comfy = engine()
    settings = _SETTINGS | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}
    model = comfy.model_base.WAN21_Vace(comfy.supported_models.WAN21_Vace(settings), device="cpu")
    copy_by_names(denoiser, model, _REST)
    given = torch.randn(1, 96, 5, 8, 8, generator=torch.Generator().manual_seed(4))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames = given.expand(len(latent), -1, -1, -1, -1)
        return denoiser(latent, level * 1000, context, control_hidden_states=frames).sample

    told = {"vace_context": given[:, None], "vace_strength": [1.0]}
    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64), told, [*_TARGETS, "proj_in", "proj_out"])


def skyreels() -> Twin:
    """SkyReels V2, which ComfyUI takes for Wan 2.1."""
    from models.skyreels import make_transformer

    denoiser = make_transformer()
    comfy = engine()
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_T2V(_SETTINGS | {"model_type": "t2v"}), device="cpu")
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, level * 1000, context).sample

    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64), targets=_TARGETS)
