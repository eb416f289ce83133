"""Stable Video Diffusion."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names
from fera.export.comfyui.stable_video import path_of

FRAMES = 3


def stable_video() -> Twin:
    """Its UNet, whose frames are rows of the batch; the given picture's channels come behind each."""
    from models.stable_video import make_unet

    denoiser: Any = make_unet(layers_per_block=2, num_attention_heads=(4, 8))
    settings = {
        **{"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2]},
        **{"num_res_blocks": [2, 2], "transformer_depth": [1, 1, 0, 0], "context_dim": 32, "adm_in_channels": 48},
        **{"transformer_depth_output": [1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "num_heads": -1},
        **{"num_head_channels": 8, "use_spatial_transformer": True, "use_linear_in_transformer": True},
        **{"num_classes": "sequential", "use_temporal_attention": True, "use_temporal_resblock": True},
        **{"extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images"},
        **{"merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "legacy": False, "dtype": torch.float32},
    }
    comfy = engine()
    config = comfy.supported_models.SVD_img2vid(dict(settings))
    config.unet_config |= settings  # it has heads of the real model
    model = comfy.model_base.SVD_img2vid(config, device="cpu")
    copy_by_names(denoiser, model, _norms(denoiser))
    generator = torch.Generator().manual_seed(4)
    picture, ids = torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([[6.0, 127.0, 0.0]])

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        behind = picture.expand(len(latent), FRAMES, -1, -1, -1)
        timestep = level * (1.638 + 1.554) - 1.554
        given = torch.cat([latent, behind], dim=2)
        # diffusers' takes one timestep for all.
        return denoiser(given, timestep[0], context, added_time_ids=ids.expand(len(latent), -1)).sample

    sizes = denoiser.add_time_proj(ids.flatten()).reshape(1, -1)
    told = {"y": sizes, "c_concat": picture, "num_video_frames": FRAMES}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff_in.net.2", "time_emb_proj", "conv2", "conv"]
    targets += ["conv_in", "proj_in", "time_pos_embed.linear_1", "add_embedding.linear_2"]
    return Twin(denoiser, model, (FRAMES, 4, 16, 16), predict, (1, 32), told, targets, has_frames_as_rows=True)


def _norms(denoiser: nn.Module) -> dict[str, str]:
    """Names of what is no layer that an adapter has: norms, and how frames are mixed."""
    names = {}
    for name in denoiser.state_dict():
        layer, _, side = name.rpartition(".")
        block, _, last = layer.rpartition(".")
        if layer == "conv_norm_out":
            names[name] = f"out.0.{side}"
        elif side == "mix_factor" and ".resnets." in name:
            names[name] = (path_of(f"{block}.spatial_res_block.conv1") or "").replace(
                ".in_layers.2", ".time_mixer.mix_factor"
            )
        elif last in ("norm1", "norm2") and ".resnets." in name:
            own = path_of(f"{block}.conv{last[-1]}") or ""
            names[name] = own[:-1] + f"0.{side}"
    return {name.replace(".", r"\."): own for name, own in names.items()}
