"""Qwen-Image, and what its editing models are given."""

from collections.abc import Sequence

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

from fera.models.packing import pack, unpack


def qwen_image() -> Twin:
    """Qwen-Image's transformer: the same names, and a frame axis."""
    return _qwen_image(())


def qwen_image_edit() -> Twin:
    """Qwen-Image-Edit: a reference's tokens come behind those of the picture."""
    return _qwen_image((torch.randn(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(4)),))


def _qwen_image(references: Sequence[Tensor]) -> Twin:
    from models.qwen_image import make_transformer

    denoiser = make_transformer()
    config = denoiser.config
    settings = {
        **{"image_model": "qwen_image", "in_channels": config.in_channels, "out_channels": config.out_channels},
        **{"patch_size": 2, "num_layers": config.num_layers, "attention_head_dim": config.attention_head_dim},
        **{"num_attention_heads": config.num_attention_heads, "joint_attention_dim": config.joint_attention_dim},
        **{"axes_dims_rope": config.axes_dims_rope, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.QwenImage(comfy.supported_models.QwenImage(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: name for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[3] // 2, latent.shape[4] // 2
        tokens = torch.cat([pack(picture[:, :, 0]) for picture in (latent, *references)], dim=1)
        found = denoiser(
            hidden_states=tokens,
            timestep=level,
            encoder_hidden_states=context,
            encoder_hidden_states_mask=torch.ones(context.shape[:2], dtype=torch.long),
            img_shapes=[[(1, height, width)] * (1 + len(references))] * len(latent),
        ).sample
        return unpack(found[:, : height * width], height, width)[:, :, None]

    targets = ["to_q", "add_k_proj", "img_mlp.net.2", "img_mod.1"]
    told = {"ref_latents": list(references)} if references else {}
    return Twin(denoiser, model, (8, 1, 16, 16), predict, (5, config.joint_attention_dim), told, targets)
