"""UNets: Stable Diffusion 1.5 and SDXL."""

import copy
from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

_UNET: dict[str, Any] = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2]},
    **{"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]},
    **{"transformer_depth_middle": 1, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False},
    "dtype": torch.float32,
}


def sd15(in_channels: int = 4, dtype: torch.dtype = torch.float32) -> Twin:
    """Stable Diffusion 1.5's UNet; ComfyUI gives it eight heads.

    That for inpainting takes nine channels, that of InstructPix2Pix eight.

    Args:
        in_channels: of the UNet.
        dtype: of ComfyUI's weights, which it computes with in float32; diffusers' are what those are.
    """
    from tiny import make_unet

    settings = (
        _UNET
        | {"in_channels": in_channels}
        | {"use_linear_in_transformer": False, "context_dim": 32, "num_heads": 8, "adm_in_channels": None}
    )
    denoiser = make_unet(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=8, in_channels=in_channels)
    comfy = engine()
    is_edit = in_channels == 8
    kind = comfy.supported_models.SD15_instructpix2pix if is_edit else comfy.supported_models.SD15
    config = kind(copy.deepcopy(settings))
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = (comfy.model_base.SD15_instructpix2pix if is_edit else comfy.model_base.BaseModel)(config, device="cpu")
    for weight in denoiser.parameters():
        weight.data = weight.data.to(dtype).float()
    copy_weights(denoiser, model, comfy.utils.unet_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, (level * 1000).round(), context).sample

    targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "conv1",
        "conv_shortcut",
        "time_emb_proj",
        "proj_in",
        "ff.net.0.proj",
    ]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), targets=targets)


def sd2() -> Twin:
    """Stable Diffusion 2's UNet, which predicts velocities; ComfyUI gives it heads of 64 channels."""
    from tiny import make_unet

    settings = _UNET | {"use_linear_in_transformer": True, "context_dim": 32, "num_heads": -1, "num_head_channels": 64}
    settings |= {"adm_in_channels": None}
    denoiser = make_unet(
        block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=(1, 1), use_linear_projection=True
    )
    comfy = engine()
    kind = comfy.model_base.ModelType.V_PREDICTION
    model = comfy.model_base.BaseModel(comfy.supported_models.SD20(copy.deepcopy(settings)), kind, device="cpu")
    copy_weights(denoiser, model, comfy.utils.unet_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, (level * 1000).round(), context).sample

    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj", "proj_in", "ff.net.2"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), targets=targets)


def sdxl() -> Twin:
    """SDXL's UNet, which is told sizes and a pooled caption; ComfyUI gives it heads of 64 channels."""
    from tiny import make_unet

    settings = _UNET | {"use_linear_in_transformer": True, "context_dim": 32, "adm_in_channels": 56}
    settings |= {"num_heads": -1, "num_head_channels": 64, "num_classes": "sequential"}
    denoiser = make_unet(
        block_out_channels=(32, 64),
        norm_num_groups=32,
        attention_head_dim=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=56,
    )
    comfy = engine()
    model = comfy.model_base.BaseModel(comfy.supported_models.SDXL(copy.deepcopy(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.unet_to_diffusers(settings))
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = {"text_embeds": pooled.expand(len(latent), -1), "time_ids": ids.expand(len(latent), -1)}
        return denoiser(latent, (level * 1000).round(), context, added_cond_kwargs=told).sample

    sizes = denoiser.add_time_proj(ids.flatten()).reshape(1, -1)
    told = {"y": torch.cat([pooled, sizes], dim=1)}
    targets = ["to_q", "to_out.0", "conv2", "conv", "conv_in", "proj_out", "linear_1"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), told, targets)
