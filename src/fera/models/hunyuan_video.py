"""HunyuanVideo: text to video."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_behind_channels

add(
    "HunyuanVideoTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("HunyuanVideoPipeline",)),
)
add(
    "HunyuanVideoFramepackTransformer3DModel",
    # Frames that were drawn before are arguments of their own.
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("HunyuanVideoFramepackPipeline",)),
)

# What a guidance-distilled transformer is told while it learns, in thousandths.
_GUIDANCE = 1.0
# Frames a second that it has learned.
_FRAME_RATE = 24.0
# The area of its smaller videos, as a square.
_RESOLUTION = 720


def hunyuan_video(pipe: Any) -> Family:
    """HunyuanVideo: told a guidance."""
    call = {"guidance_scale": _GUIDANCE, "num_frames": 1}
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    names = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    return Family(
        parts,
        reader(named(*names), **call),
        _predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=_latents,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_clip(vae, pixels)) * float(vae.config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=frames_behind_channels(denoiser, noisy),
        timestep=timesteps.to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_attention_mask=conditions["encoder_attention_mask"],
        pooled_projections=conditions["pooled_projections"],
        guidance=torch.full((len(noisy),), 1000 * _GUIDANCE, device=noisy.device, dtype=noisy.dtype),
        return_dict=False,
    )[0]
    return folded(prediction)


add_family("HunyuanVideoPipeline", hunyuan_video, "HunyuanVideo")
