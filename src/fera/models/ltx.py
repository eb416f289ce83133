"""LTX-Video: text to video, and image to video."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video, rows
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.prompts import prompt_settings
from fera.models.registry import FEED_FORWARD, Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_before_channels

add(
    "LTXVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.packed_frames,
        beside=FEED_FORWARD,
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        rows={"time_embed": rows.timesteps},
    ),
)

# What its pipeline takes for granted.
_FRAME_RATE = 25
# The area of its videos, as a square.
_RESOLUTION = 608


def ltx(pipe: Any) -> Family:
    """LTX-Video: a pixel of the latent a token; places are told in seconds and pixels."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    names = ("encoder_hidden_states", "encoder_attention_mask")
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named(*names), **call),
        _predict_with(pipe),
        scale=int(pipe.vae_spatial_compression_ratio),
        resolution=_RESOLUTION,
        latents=latents_of,
        video=Video(int(pipe.vae_temporal_compression_ratio), _FRAME_RATE),
        reads={"text_encoder": None},
        call=call,
    )


def ltx_image_to_video(pipe: Any) -> Family:
    """LTX-Video that is given the first frame: it is the latent's first one, and its tokens have timestep 0."""
    return replace(
        ltx(pipe),
        encode=_encode,
        predict=_predict_with(pipe),
        latents=latents_after_frame,
        pairs=given(first_of),
        call={"guidance_scale": 1.0},
    )


def _predict_with(pipe: Any) -> Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]:
    side = int(pipe.vae_spatial_compression_ratio)
    units = (pipe.vae_temporal_compression_ratio / _FRAME_RATE, side, side)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latents, timesteps = behind_frame(denoiser, noisy, timesteps, conditions)
        frames, _, height, width = latents.shape[1:]
        prediction: Tensor = denoiser(
            hidden_states=latents.movedim(2, -1).flatten(1, 3),
            encoder_hidden_states=conditions["encoder_hidden_states"],
            timestep=timesteps,
            encoder_attention_mask=conditions["encoder_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=units,
            return_dict=False,
        )[0]
        drawn = prediction.unflatten(1, (frames, height, width)).movedim(-1, 2)
        return folded(drawn[:, 1:] if "source_0" in conditions else drawn)

    return predict


def behind_frame(
    denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions
) -> tuple[Tensor, Tensor]:
    """Noisy latents, (B, T, C, h, w), behind the given frame where there is one, and the timesteps of their tokens.

    Those are (B, T h w), 0 on the given frame; without one they stay as they are, (B,).
    """
    latents = frames_before_channels(denoiser, noisy)
    if (first := conditions.get("source_0")) is None:
        return latents, timesteps
    latents = torch.cat([first[:, None], latents], dim=1)
    frames, _, height, width = latents.shape[1:]
    is_drawn = torch.arange(frames, device=noisy.device).repeat_interleave(height * width) > 0
    return latents, timesteps[:, None] * is_drawn


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    texts, mask, *_ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, **prompt_settings(pipe)
    )
    return {"encoder_hidden_states": texts, "encoder_attention_mask": mask}


def first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    """The first frame's clean latent, (B, C, h, w); as `GivenFrames.latents`."""
    return latents_of(vae, frames[0])


def latents_after_frame(vae: Any, pixels: Tensor) -> Tensor:
    """Clean latents without their first frame; as `Family.latents`."""
    return latents_of(vae, pixels)[:, vae.latents_mean.numel() :]


def latents_of(vae: Any, pixels: Tensor) -> Tensor:
    """By the mean and the deviation of each channel, which are the autoencoder's buffers; as `Family.latents`."""
    latents = by_channel(encoded_clip(vae, pixels), vae.latents_mean, vae.latents_std)
    return folded(latents.transpose(1, 2)) * float(vae.config.scaling_factor)


add_family("LTXPipeline", ltx, "LTX-Video")
add_family("LTXImageToVideoPipeline", ltx_image_to_video, "LTX-Video image to video")
