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
from fera.models.registry import Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_before_channels

add(
    "LTXVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.packed_frames,
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        rows={"time_embed": rows.timesteps},
    ),
)

add(
    "LTX2VideoTransformer3DModel",  # draws sound too; its video routes both
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTX2Pipeline",)),
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
        latents=_latents,
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
        latents=_latents_after_frame,
        pairs=given(_first_of),
        call={"guidance_scale": 1.0},
    )


def _predict_with(pipe: Any) -> Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]:
    side = int(pipe.vae_spatial_compression_ratio)
    units = (pipe.vae_temporal_compression_ratio / _FRAME_RATE, side, side)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latents = frames_before_channels(denoiser, noisy)
        first = conditions.get("source_0")
        if first is not None:
            latents = torch.cat([first[:, None], latents], dim=1)
        frames, _, height, width = latents.shape[1:]
        if first is not None:
            is_drawn = torch.arange(frames, device=noisy.device).repeat_interleave(height * width) > 0
            timesteps = timesteps[:, None] * is_drawn
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
        return folded(drawn if first is None else drawn[:, 1:])

    return predict


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    texts, mask, *_ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, **prompt_settings(pipe)
    )
    return {"encoder_hidden_states": texts, "encoder_attention_mask": mask}


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    return _latents(vae, frames[0])


def _latents_after_frame(vae: Any, pixels: Tensor) -> Tensor:
    return _latents(vae, pixels)[:, vae.latents_mean.numel() :]


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """By the mean and the deviation of each channel, which are the autoencoder's buffers."""
    latents = by_channel(encoded_clip(vae, pixels), vae.latents_mean, vae.latents_std)
    return folded(latents.transpose(1, 2)) * float(vae.config.scaling_factor)


add_family("LTXPipeline", ltx, "LTX-Video")
add_family("LTXImageToVideoPipeline", ltx_image_to_video, "LTX-Video image to video")
