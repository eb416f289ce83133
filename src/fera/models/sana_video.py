"""Sana-Video: text to video, and image to video."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video, rows
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.registry import Denoiser, add
from fera.models.sana import encode
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_behind_channels

add(
    "SanaVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ff.conv_inverted", "ff.conv_point"),
        pipelines=("SanaVideoPipeline", "SanaImageToVideoPipeline"),
        rows={"time_embed": rows.timesteps},
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 16.0
# The area of its videos as a square, by the size that its transformer names.
_RESOLUTIONS = {30: 640, 22: 960}


def sana_video(pipe: Any) -> Family:
    """Sana-Video. Captions get the instruction that its pipeline gives to prompts."""
    return Family(
        ("tokenizer", "text_encoder"),
        encode,
        _predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTIONS.get(pipe.transformer.config.sample_size, 640),
        latents=_latents,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE, argument="frames"),
        reads={"text_encoder": None},
        call={"guidance_scale": 1.0, "use_resolution_binning": False},
    )


def sana_image_to_video(pipe: Any) -> Family:
    """Sana-Video that is given the first frame: it is the latent's first one, and has timestep 0."""
    return replace(sana_video(pipe), latents=_latents_after_frame, pairs=given(_first_of))


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(_encoded(vae, pixels))


def _latents_after_frame(vae: Any, pixels: Tensor) -> Tensor:
    return folded(_encoded(vae, pixels)[:, :, 1:])


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    return folded(_encoded(vae, frames[0]))


def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    """By the mean and the deviation of each channel, of autoencoders that have such."""
    latents = encoded_clip(vae, pixels)
    held = next((held for held in (vae, vae.config) if hasattr(held, "latents_mean")), None)
    return latents if held is None else by_channel(latents, held.latents_mean, held.latents_std)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    latents = frames_behind_channels(denoiser, noisy)
    first = conditions.get("source_0")
    if first is not None:
        latents = torch.cat([first[:, :, None], latents], dim=2)
        packed = [size // side for size, side in zip(latents.shape[2:], config.patch_size, strict=True)]
        is_drawn = torch.arange(packed[0], device=noisy.device).view(-1, 1, 1).expand(*packed) > 0
        timesteps = timesteps.view(-1, 1, 1, 1, 1) * is_drawn
    prediction: Tensor = denoiser(
        latents,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_attention_mask=conditions["encoder_attention_mask"],
        timestep=timesteps,
        return_dict=False,
    )[0][:, : latents.shape[1]]
    return folded(prediction if first is None else prediction[:, :, 1:])


add_family("SanaVideoPipeline", sana_video, "Sana-Video")
add_family("SanaImageToVideoPipeline", sana_image_to_video, "Sana-Video image to video")
